"""Teacher LLMs: the plain LLM of general adaptation and the fine-tuned LLM of task distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtllm_edge.inputs import Input
from mtllm_edge_train.checkpoints.config import LlmConfig, StackConfig, resolve_source
from mtllm_edge_train.distillation.embedding_cache import EmbeddingCache
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.stack import LlmBody, embed_texts, load_llm_tokenizer
from mtllm_edge_train.training.settings import LoopSettings


class CachedTeacher:
    """A function from texts to vectors (N, D) that encodes only the texts that are not in its cache."""

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], cache: EmbeddingCache | None, *, device: str) -> None:
        """Wrap a function; its vectors are returned on `device`."""
        self._encode, self._cache, self._device = encode, cache, device

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, D), float32."""
        if self._cache is None:
            return self._encode(texts)
        vectors = self._cache.get(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in vectors]
        if missing:
            new_ND = self._encode(missing).cpu().numpy()
            self._cache.put(missing, new_ND)
            vectors.update(zip(missing, new_ND, strict=True))
        return torch.from_numpy(np.stack([vectors[text] for text in texts])).to(self._device)


def load_teacher(folder: Path, *, max_tokens: int, settings: LoopSettings) -> Callable[[Sequence[Input]], list[Tensor]]:
    """Load a fine-tuned LLM as a function from inputs to their vectors (V, D) in eval mode."""
    config = StackConfig.load(folder)
    llm = loading.load_llm(folder, config, dtype=settings.frozen_dtype, nf4=settings.nf4).to(settings.device)
    tokenizer = load_llm_tokenizer(resolve_source(config.llm.source, folder))
    return lambda texts: embed_texts(llm, tokenizer, texts, max_tokens=max_tokens, settings=settings)


def encode_without_lora(
    llm: LlmBody, tokenizer: Any, texts: Sequence[str], *, max_tokens: int, settings: LoopSettings
) -> Tensor:
    """Pooled vectors (N, D) of the plain LLM, with the student's LoRA off."""
    with torch.no_grad(), settings.autocast(), llm.without_lora():
        return llm.embed(tokenizer, texts, max_tokens=max_tokens).float()


def plain_llm_key(llm: LlmConfig, *, max_tokens: int, settings: LoopSettings) -> dict[str, Any]:
    """Key of the plain LLM's vectors in an `EmbeddingCache`; a local model is identified by path and file sizes."""
    path = Path(resolve_source(llm.source))
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {
        "llm": llm.source,
        "files": [[file.name, file.stat().st_size] for file in files if file.is_file()],
        "layers": llm.layers,
        "attention": llm.attention,
        "max_tokens": max_tokens,
        "dtype": settings.dtype,
        "base_dtype": "nf4" if settings.nf4 else str(settings.frozen_dtype),
    }
