"""What the server takes, and how much of it at once; every refusal says which limit it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input, part_name, parts_of
from mtllm_edge.server.errors import RefusedError


@dataclass(frozen=True)
class Limits:
    """Bounds of one server."""

    body_bytes: int = 8 * 2**20
    """Longest body of a request."""
    texts: int = 1024
    """Most texts in a request."""
    characters: int = 20_000
    """Longest text, pair, or text with choices."""
    waiting: int = 2048
    """Most texts in the queue."""
    batch_tokens: int = 2048
    """Most tokens that are read in one turn, unless a single text has more."""

    def __post_init__(self) -> None:
        """Refuse a contradiction.

        Raises:
            UsageError: A request that is allowed would never fit into the queue.
        """
        if self.texts > self.waiting:
            raise UsageError(
                f"a request may have {self.texts} texts, but the queue holds {self.waiting}; "
                "raise --max-queue or lower --max-texts"
            )

    def check(self, texts: Sequence[Input], field: str) -> None:
        """Refuse too many texts, or too long ones.

        Args:
            texts: Of one request.
            field: What the request calls them.

        Raises:
            RefusedError: With the index of the text, where one is at fault.
        """
        if len(texts) > self.texts:
            raise RefusedError(
                422, f"there are {len(texts)} texts, at most {self.texts} fit into a request; send them in parts", field
            )
        for index, item in enumerate(texts):
            length = sum(map(len, parts_of(item)))
            if length > self.characters:
                raise RefusedError(
                    422,
                    f"{part_name(item, 0, index)} has {length} characters, at most {self.characters} are read; "
                    "shorten it",
                    f"{field}[{index}]",
                )
