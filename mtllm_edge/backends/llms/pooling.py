"""What every LLM engine does around its own computing: inputs checked before it, means taken after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import EngineError
from mtllm_edge.tokenization.encoding import Spans


def check_inputs(batch: Sequence[NDArray[np.float32]], *, n_embd: int, path: Path) -> None:
    """Refuse inputs that are not float32 (1 or more, n_embd), or hold numbers that are not finite.

    Raises:
        EngineError: With the name of the LLM's file, `path`.
    """
    for inputs_LE in batch:
        if not isinstance(inputs_LE, np.ndarray) or inputs_LE.dtype != np.float32:
            found = getattr(inputs_LE, "dtype", type(inputs_LE).__name__)
            raise EngineError(f"{path}: an input of type {found}, expected arrays of float32")
        if inputs_LE.ndim != 2 or inputs_LE.shape[1] != n_embd or not len(inputs_LE):
            raise EngineError(f"{path}: an input of shape {inputs_LE.shape}, expected (1 or more, {n_embd})")
    if not all(np.isfinite(inputs_LE).all() for inputs_LE in batch):
        raise EngineError(f"{path}: the encoder or the bridge gave numbers that are not finite")


def check_spans(spans: Sequence[Spans] | None, lengths: Sequence[int], *, path: Path) -> None:
    """Refuse pieces that are not inside the texts of these lengths.

    Raises:
        EngineError: With the name of the LLM's file, `path`.
    """
    if spans is None:
        return
    if len(spans) != len(lengths):
        raise EngineError(f"{path}: pieces of {len(spans)} texts for {len(lengths)} texts")
    for pieces, length in zip(spans, lengths, strict=True):
        if not all(0 <= begin < end <= length for begin, end in pieces):
            raise EngineError(f"{path}: pieces {pieces} of a text of {length} tokens, expected them inside it")


def span_means(states: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None) -> NDArray[np.float32]:
    """Means (vectors, n_embd) over the spans of each text's states (length, n_embd), as `Llm.pool` returns them."""
    return np.stack(
        [
            states_LE[begin:end].mean(axis=0)
            for states_LE, pieces in zip(states, spans or [()] * len(states), strict=True)
            for begin, end in pieces or ((0, len(states_LE)),)
        ]
    )
