"""What the pipeline asks of an LLM body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Llm(Protocol):
    """An LLM body in some engine."""

    def pool(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Mean over the final states, (texts, n_embd), of a batch of input embeddings, each (length, n_embd)."""

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
