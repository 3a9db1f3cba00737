"""The teacher of general adaptation: the plain LLM, which the student carries in itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtllm_edge_train.config import LlmConfig, resolve_source
from mtllm_edge_train.loop import LoopSettings
from mtllm_edge_train.model import LlmBody
from mtllm_edge_train.vector_cache import VectorCache


class Teacher:
    """What the plain LLM, its adapters off, says of English texts in its own tokens."""

    def __init__(
        self, llm: LlmBody, tokenizer: Any, *, max_tokens: int, settings: LoopSettings, cache: VectorCache | None
    ) -> None:
        """Put a student's LLM to use as its teacher; without a cache every text is read whenever it comes."""
        self._llm, self._tokenizer, self._cache = llm, tokenizer, cache
        self._max_tokens, self._settings = max_tokens, settings

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Pooled vectors (N, D), float32."""
        if self._cache is None:
            return self._read(texts)
        known = self._cache.get(texts)
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        if unknown:
            vectors_ND = self._read(unknown).cpu().numpy()
            self._cache.put(unknown, vectors_ND)
            known.update(zip(unknown, vectors_ND, strict=True))
        return torch.from_numpy(np.stack([known[text] for text in texts])).to(self._settings.device)

    def _read(self, texts: Sequence[str]) -> Tensor:
        with torch.no_grad(), self._settings.autocast(), self._llm.without_lora():
            return self._llm.read(self._tokenizer, texts, max_tokens=self._max_tokens).float()


def teacher_key(llm: LlmConfig, *, max_tokens: int, settings: LoopSettings) -> dict[str, Any]:
    """What decides a teacher's vectors; a local model is known by its path and by the sizes of its files."""
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
