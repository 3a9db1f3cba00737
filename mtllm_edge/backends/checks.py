"""Checks of what goes into the engines and comes out of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import EngineError, ModelError
from mtllm_edge.tokenization.encoding import Spans


def check_ids(batch: Sequence[Sequence[int]], *, vocabulary_size: int, path: Path) -> None:
    """Refuse ids outside the vocabulary (ModelError), which engines may not check, and empty texts (EngineError)."""
    if not all(batch):
        raise EngineError(f"{path}: a text without tokens reached the model; report this as a bug")
    lowest, highest = min(map(min, batch)), max(map(max, batch))
    if lowest < 0 or highest >= vocabulary_size:
        raise ModelError(
            f"{path}: token id {lowest if lowest < 0 else highest} is outside the model's vocabulary of "
            f"{vocabulary_size} tokens; tokenizer.json belongs to another model"
        )


def check_inputs(batch: Sequence[NDArray[np.float32]], *, n_embd: int, path: Path) -> None:
    """Raise EngineError for LLM inputs that are not finite float32 arrays of shape (1 or more, n_embd)."""
    for inputs_LE in batch:
        if not isinstance(inputs_LE, np.ndarray) or inputs_LE.dtype != np.float32:
            dtype = getattr(inputs_LE, "dtype", type(inputs_LE).__name__)
            raise EngineError(f"{path}: an input of type {dtype}, expected arrays of float32")
        if inputs_LE.ndim != 2 or inputs_LE.shape[1] != n_embd or not len(inputs_LE):
            raise EngineError(f"{path}: an input of shape {inputs_LE.shape}, expected (1 or more, {n_embd})")
    if not all(np.isfinite(inputs_LE).all() for inputs_LE in batch):
        raise EngineError(f"{path}: the encoder or the bridge returned numbers that are not finite")


def check_spans(spans: Sequence[Spans] | None, batch: Sequence[NDArray[Any]], *, path: Path) -> None:
    """Raise EngineError for spans outside their texts."""
    if spans is None:
        return
    if len(spans) != len(batch):
        raise EngineError(f"{path}: spans of {len(spans)} texts for {len(batch)} texts")
    for text_spans, inputs_LE in zip(spans, batch, strict=True):
        if not all(0 <= begin < end <= len(inputs_LE) for begin, end in text_spans):
            raise EngineError(f"{path}: spans {text_spans} are not inside their text of {len(inputs_LE)} tokens")


def unpad(
    states_NLD: NDArray[np.float32], batch: Sequence[Sequence[Any] | NDArray[Any]], *, width: int, origin: str
) -> list[NDArray[np.float32]]:
    """Return the states of each text, (length, width), of a batch padded on the right.

    Raises EngineError, with the path and engine in `origin`, if the states have another shape or are not finite.
    """
    expected = (len(batch), max(map(len, batch)), width)
    if states_NLD.shape != expected:
        raise EngineError(f"{origin} returned shape {states_NLD.shape}, expected {expected}")
    states = [states_LD[: len(text)] for states_LD, text in zip(states_NLD, batch, strict=True)]
    if not all(np.isfinite(states_LD).all() for states_LD in states):
        raise EngineError(f"{origin} returned numbers that are not finite; export it again")
    return states
