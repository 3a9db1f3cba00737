"""The bootstrap: scores as in scikit-learn, and intervals as from resampling the texts one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from mtllm_edge_train.evaluation.bootstrap import bootstrap_scores, interval, score

LABELS = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(LABELS, LABELS, LABELS), min_size=1))
def test_the_first_row_has_the_scores_of_scikit_learn(rows: list[tuple[str, str, str]]) -> None:
    labels, *systems = zip(*rows, strict=True)
    scores_BSM = bootstrap_scores(labels, systems, resamples=20, seed=(0,))
    assert scores_BSM.shape == (21, 2, 2)
    for system, predictions in enumerate(systems):
        expected = [accuracy_score(labels, predictions), f1_score(labels, predictions, average="macro")]
        assert scores_BSM[0, system] == pytest.approx(expected)
        assert list(score(labels, predictions).values()) == pytest.approx(expected)
    assert ((scores_BSM >= 0) & (scores_BSM <= 1 + 1e-12)).all()


def test_resamples_are_those_of_the_texts() -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice(["a", "b", "c"], 60, p=[0.6, 0.3, 0.1])
    systems = [np.where(rng.random(60) < right, labels, rng.choice(["a", "b", "c"], 60)) for right in (0.7, 0.4)]
    scores_BSM = bootstrap_scores([*labels], [[*predictions] for predictions in systems], resamples=4000, seed=(0,))[1:]
    draws = [rng.integers(60, size=60) for _ in range(4000)]
    expected_BSM = np.array(
        [[list(score(labels[i], predictions[i]).values()) for predictions in systems] for i in draws]
    )
    np.testing.assert_allclose(scores_BSM.mean(0), expected_BSM.mean(0), atol=0.005)
    np.testing.assert_allclose(
        np.cov(scores_BSM.reshape(4000, 4).T), np.cov(expected_BSM.reshape(4000, 4).T), atol=3e-4
    )
    tails = [np.percentile(values_BSM, [2.5, 97.5], axis=0) for values_BSM in (scores_BSM, expected_BSM)]
    np.testing.assert_allclose(*tails, atol=0.02)


def test_systems_are_compared_on_the_same_resamples() -> None:
    labels = ["a", "b", "c"] * 20
    predictions = ["a", "b", "b"] * 20
    scores_BSM = bootstrap_scores(labels, [predictions, predictions, labels], resamples=50, seed=(0,))
    assert (scores_BSM[:, 0] == scores_BSM[:, 1]).all()
    assert (scores_BSM[:, 2] == 1).all()
    assert scores_BSM[1:, 0, 0].std() > 0


def test_a_seed_decides_the_resamples() -> None:
    labels, predictions = ["a", "b"] * 10, ["a"] * 20
    first, again, other = (
        bootstrap_scores(labels, [predictions], resamples=50, seed=seed) for seed in ((0, 1), (0, 1), (0, 2))
    )
    assert (first == again).all()
    assert (first != other).any()


def test_an_interval_holds_the_middle_of_the_resamples() -> None:
    measured = interval(np.array([0.5, *np.linspace(0, 1, 1001)]))
    assert (measured.value, measured.low, measured.high) == (0.5, 0.025, 0.975)
