"""The interface of encoder backends, and the check of their input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import EngineError, ModelError


def check_ids(batch: Sequence[Sequence[int]], *, vocabulary_size: int, path: Path) -> None:
    """Refuse texts without tokens, and ids that no engine may look up: some read beyond their table.

    Raises:
        EngineError: A text has no tokens; the message has the name of the encoder's file or folder, `path`.
        ModelError: An id lies outside the vocabulary.
    """
    if not all(batch):
        raise EngineError(f"{path}: a text without tokens reached the encoder; report this as a bug")
    lowest, highest = min(map(min, batch)), max(map(max, batch))
    if lowest < 0 or highest >= vocabulary_size:
        raise ModelError(
            f"{path}: token id {lowest if lowest < 0 else highest}, but the encoder knows "
            f"{vocabulary_size} tokens; tokenizer.json belongs to another model"
        )


class Encoder(Protocol):
    """A translation encoder in some engine."""

    @property
    def pads(self) -> bool:
        """Whether every text of a batch costs as much as the longest."""

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Hidden states of a batch of token id sequences, each (length, d_model), without padding."""

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
