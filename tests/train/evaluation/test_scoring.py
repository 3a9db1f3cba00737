"""Scores: answers that are known, and properties of all answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtllm_edge_train.evaluation.scoring import score

LABELS = st.sampled_from(["a", "b", "c"])


def test_scores_by_hand() -> None:
    scores = score(["a", "a", "b", "c"], ["a", "b", "b", "a"])
    assert scores.texts == 4
    assert scores.accuracy == 0.5
    assert scores.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1))
def test_scores_keep_their_bounds(pairs: list[tuple[str, str]]) -> None:
    gold, found = zip(*pairs, strict=True)
    scores = score(gold, found)
    assert 0 <= scores.macro_f1 <= 1
    assert scores.accuracy == sum(mine == theirs for mine, theirs in pairs) / len(pairs)
    assert (scores.macro_f1 == 1) == (scores.accuracy == 1)
    swapped = score(found, gold)
    assert swapped.macro_f1 == pytest.approx(scores.macro_f1)
