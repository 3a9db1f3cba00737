from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtllm_edge.tokenization.batching import plan_batches


@given(lengths=st.lists(st.integers(1, 40)), max_tokens=st.integers(40, 200), max_texts=st.integers(1, 20))
def test_batches_are_full_and_bounded(lengths: list[int], max_tokens: int, max_texts: int) -> None:
    batches = plan_batches(lengths, max_tokens=max_tokens, max_texts=max_texts)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= max_texts
        assert sum(lengths[index] for index in batch) <= max_tokens
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch, following in itertools.pairwise(batches):  # each batch is full
        full = sum(lengths[index] for index in batch) + lengths[following[0]] > max_tokens
        assert full or len(batch) == max_texts


@given(lengths=st.lists(st.integers(1, 40)), max_tokens=st.integers(40, 200))
def test_padding_counts_as_tokens(lengths: list[int], max_tokens: int) -> None:
    batches = plan_batches(lengths, max_tokens=max_tokens, padded=True)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * lengths[batch[0]] <= max_tokens
    for batch, _ in itertools.pairwise(batches):
        assert (len(batch) + 1) * lengths[batch[0]] > max_tokens or len(batch) == 64


def test_equal_lengths_keep_their_order() -> None:
    assert plan_batches([5, 7, 5, 7, 5], max_tokens=12) == [[1], [3, 0], [2, 4]]


@pytest.mark.parametrize("lengths", [[3, 0], [3, 513], [-1]])
def test_lengths_out_of_bounds(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 512"):
        plan_batches(lengths)
