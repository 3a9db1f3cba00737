"""Interface of LLM backends, and their mean pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.tokenization.encoding import Spans


class Llm(Protocol):
    """An LLM body in an engine."""

    @property
    def pads(self) -> bool:
        """Whether every text of a batch costs as much as the longest."""

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Return means of the final states of input embeddings.

        Args:
            batch: Inputs of each text, (length, n_embd).
            spans: Spans of each text that get a vector each; a text without spans gets one vector. None means no
                spans in any text.
            adapter: Name of the adapter that is applied; None applies none.

        Returns:
            (vectors, n_embd), text after text.
        """

    def close(self) -> None:
        """Free the memory; may be called repeatedly."""


def span_means(states: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None) -> NDArray[np.float32]:
    """Return the means (vectors, n_embd) over the spans of each text's states (length, n_embd), as `Llm.pool`."""
    return np.stack(
        [
            states_LE[begin:end].mean(axis=0)
            for states_LE, text_spans in zip(states, spans or [()] * len(states), strict=True)
            for begin, end in text_spans or ((0, len(states_LE)),)
        ]
    )
