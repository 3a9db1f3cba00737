"""What the pipeline asks of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """A translation encoder in some engine."""

    @property
    def pads(self) -> bool:
        """Whether every text of a batch costs as much as the longest."""

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Hidden states of a batch of token id sequences, each (length, d_model), without padding."""

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
