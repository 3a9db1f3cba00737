"""What the pipeline asks of an LLM body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.tokenization.encoding import Spans


class Llm(Protocol):
    """An LLM body in some engine."""

    @property
    def pads(self) -> bool:
        """Whether every text of a batch costs as much as the longest."""

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Means over the final states of a batch of input embeddings, each (length, n_embd).

        Args:
            batch: The inputs of each text.
            spans: Pieces of each text that get a vector of their own; a text without any gets one for the whole of it,
                as all texts do where this is None.
            adapter: Name of the adapter that the LLM wears for this batch; None is the LLM as it is.

        Returns:
            (vectors, n_embd), text after text.
        """

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
