"""Teachers: readers of English texts, and what they said of those that they have read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtllm_edge_train.checkpoints.config import LlmConfig, resolve_source
from mtllm_edge_train.models.stack import LlmBody
from mtllm_edge_train.training.settings import LoopSettings


class VectorStore(Protocol):
    """Vectors by text: a `VectorCache`, which outlives the run, or a `Memory`."""

    def get(self, texts: Sequence[str], /) -> dict[str, NDArray[np.float32]]:
        """The vectors (D,) of those texts that have one."""

    def put(self, texts: Sequence[str], vectors_ND: NDArray[np.float32], /) -> None:
        """Add vectors (N, D)."""


class Memory:
    """Vectors that are kept for one run."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[str, NDArray[np.float32]] = {}

    def get(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors (D,) of those texts that have one."""
        return {text: self._known[text] for text in texts if text in self._known}

    def put(self, texts: Sequence[str], vectors_ND: NDArray[np.float32]) -> None:
        """Add vectors (N, D)."""
        self._known.update(zip(texts, vectors_ND, strict=True))


class Teacher:
    """A reader of texts that reads none twice where its vectors are stored."""

    def __init__(self, read: Callable[[Sequence[str]], Tensor], store: VectorStore | None, *, device: str) -> None:
        """Put a reader to use.

        Args:
            read: Texts -> vectors (N, D).
            store: Where its vectors are kept; without one every text is read whenever it comes.
            device: Where the vectors are wanted.
        """
        self._read, self._store, self._device = read, store, device

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, D), float32."""
        if self._store is None:
            return self._read(texts)
        known = self._store.get(texts)
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        if unknown:
            vectors_ND = self._read(unknown).cpu().numpy()
            self._store.put(unknown, vectors_ND)
            known.update(zip(unknown, vectors_ND, strict=True))
        return torch.from_numpy(np.stack([known[text] for text in texts])).to(self._device)


def read_plainly(
    llm: LlmBody, tokenizer: Any, texts: Sequence[str], *, max_tokens: int, settings: LoopSettings
) -> Tensor:
    """Pooled vectors (N, D) of the plain LLM, its adapters off: the teacher that a student carries in itself."""
    with torch.no_grad(), settings.autocast(), llm.without_lora():
        return llm.embed(tokenizer, texts, max_tokens=max_tokens).float()


def teacher_key(llm: LlmConfig, *, max_tokens: int, settings: LoopSettings) -> dict[str, Any]:
    """What decides the plain LLM's vectors; a local model is known by its path and by the sizes of its files."""
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
