"""Interface of encoder backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """A translation encoder in an engine."""

    @property
    def pads(self) -> bool:
        """Whether every text of a batch costs as much as the longest."""

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Return the hidden states of token id sequences, each (length, d_model), without padding."""

    def close(self) -> None:
        """Free the memory; may be called repeatedly."""
