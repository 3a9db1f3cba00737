"""Batches by token count, texts of similar length together."""

from __future__ import annotations

from collections.abc import Sequence

TOKENS_PER_BATCH = 512
"""Attention in llama.cpp runs over the whole unified batch, so a few hundred tokens at a time beat thousands."""
TEXTS_PER_BATCH = 64


def llm_room(max_tokens: int, stride: int, *, max_texts: int = TEXTS_PER_BATCH) -> int:
    """Most LLM inputs that a batch of encoder tokens becomes: with a strided bridge, each text ends in a part group."""
    return max_tokens if stride == 1 else max_tokens // stride + max_texts


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int = TOKENS_PER_BATCH,
    max_texts: int = TEXTS_PER_BATCH,
    padded: bool = False,
) -> list[list[int]]:
    """Group texts into batches, longest first, so that little padding is needed and memory peaks at once.

    Args:
        lengths: Tokens of each text, from 1 to `max_tokens`.
        max_tokens: Most tokens in a batch.
        max_texts: Most texts in a batch.
        padded: Whether padding counts: every text takes the room of its batch's longest.

    Returns:
        Indices into `lengths`, each exactly once.

    Raises:
        ValueError: A length is out of bounds.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if order and (lengths[order[-1]] < 1 or lengths[order[0]] > max_tokens):
        raise ValueError(f"lengths from {lengths[order[-1]]} to {lengths[order[0]]}, expected 1 to {max_tokens}")
    batches: list[list[int]] = []
    room = 0
    for index in order:
        taken = lengths[batches[-1][0]] if padded and batches else lengths[index]
        if not batches or taken > room or len(batches[-1]) == max_texts:
            batches.append([])
            room, taken = max_tokens, lengths[index]
        batches[-1].append(index)
        room -= taken
    return batches
