"""Batches of texts of similar length, limited by their tokens."""

from __future__ import annotations

from collections.abc import Sequence

TOKENS_PER_BATCH = 512
"""llama.cpp computes attention over the whole batch, so batches of a few hundred tokens are the fastest."""
TEXTS_PER_BATCH = 64


def max_llm_inputs(max_tokens: int, stride: int, *, max_texts: int = TEXTS_PER_BATCH) -> int:
    """Return the maximum LLM inputs of a batch of encoder tokens; a strided bridge pads the last group of each text."""
    return max_tokens if stride == 1 else max_tokens // stride + max_texts


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int = TOKENS_PER_BATCH,
    max_texts: int = TEXTS_PER_BATCH,
    padded: bool = False,
) -> list[list[int]]:
    """Group texts into batches, longest first, for little padding and an early peak of memory.

    Returns indices into `lengths`, the tokens of each text. With `padded`, every text counts as the longest of its
    batch.

    Raises:
        ValueError: A length is out of bounds.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if order and (lengths[order[-1]] < 1 or lengths[order[0]] > max_tokens):
        raise ValueError(f"lengths from {lengths[order[-1]]} to {lengths[order[0]]}, expected 1 to {max_tokens}")
    batches: list[list[int]] = []
    free = 0
    for index in order:
        tokens = lengths[batches[-1][0]] if padded and batches else lengths[index]
        if not batches or tokens > free or len(batches[-1]) == max_texts:
            batches.append([])
            free, tokens = max_tokens, lengths[index]
        batches[-1].append(index)
        free -= tokens
    return batches
