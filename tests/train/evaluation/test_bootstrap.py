"""The bootstrap over cells: the scores of `score`, and the intervals of resampling the texts one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtllm_edge_train.evaluation.bootstrap import figures, interval
from mtllm_edge_train.evaluation.scoring import score

LABELS = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(LABELS, LABELS, LABELS), min_size=1))
def test_the_first_row_holds_the_scores(rows: list[tuple[str, str, str]]) -> None:
    gold, *found = zip(*rows, strict=True)
    measured_BSM = figures(gold, found, resamples=20, seed=(0,))
    assert measured_BSM.shape == (21, 2, 2)
    for system, answers in enumerate(found):
        scores = score(gold, answers)
        assert measured_BSM[0, system] == pytest.approx([scores.accuracy, scores.macro_f1])
    assert ((measured_BSM >= 0) & (measured_BSM <= 1 + 1e-12)).all()


def test_resamples_are_those_of_the_texts() -> None:
    rng = np.random.default_rng(3)
    gold = rng.choice(["a", "b", "c"], 60, p=[0.6, 0.3, 0.1])
    systems = [np.where(rng.random(60) < right, gold, rng.choice(["a", "b", "c"], 60)) for right in (0.7, 0.4)]
    measured_BSM = figures([*gold], [[*found] for found in systems], resamples=4000, seed=(0,))[1:]
    draws = [rng.integers(60, size=60) for _ in range(4000)]
    expected_BSM = np.array(
        [[(s.accuracy, s.macro_f1) for s in (score(gold[i], found[i]) for found in systems)] for i in draws]
    )
    np.testing.assert_allclose(measured_BSM.mean(0), expected_BSM.mean(0), atol=0.005)
    np.testing.assert_allclose(
        np.cov(measured_BSM.reshape(4000, 4).T), np.cov(expected_BSM.reshape(4000, 4).T), atol=3e-4
    )
    tails = [np.percentile(values_BSM, [2.5, 97.5], axis=0) for values_BSM in (measured_BSM, expected_BSM)]
    np.testing.assert_allclose(*tails, atol=0.02)


def test_systems_are_compared_on_the_same_resamples() -> None:
    gold = ["a", "b", "c"] * 20
    found = ["a", "b", "b"] * 20
    measured_BSM = figures(gold, [found, found, gold], resamples=50, seed=(0,))
    assert (measured_BSM[:, 0] == measured_BSM[:, 1]).all()
    assert (measured_BSM[:, 2] == 1).all()
    assert measured_BSM[1:, 0, 0].std() > 0


def test_a_seed_decides_the_resamples() -> None:
    gold, found = ["a", "b"] * 10, ["a"] * 20
    first, again, other = (figures(gold, [found], resamples=50, seed=seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert (first == again).all()
    assert (first != other).any()


def test_an_interval_holds_the_middle_of_the_resamples() -> None:
    measured = interval(np.array([0.5, *np.linspace(0, 1, 1001)]))
    assert (measured.value, measured.low, measured.high) == (0.5, 0.025, 0.975)
