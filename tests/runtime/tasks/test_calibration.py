"""Temperature scaling, calibration error and thresholds, on data with known results."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mtllm_edge.bundle.manifest import TaskSpec
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.tasks.calibration import (
    LANGUAGE_TEXTS,
    Temperatures,
    fit_temperature,
    fit_temperatures,
    frequent_languages,
    resolve_abstention,
    select_temperatures,
)
from mtllm_edge.tasks.calibration_report import MIN_THRESHOLD_TEXTS, find_threshold, fit_calibration
from mtllm_edge.tasks.head import Head, softmax
from mtllm_edge.tasks.metrics import BINS, calibration_error, reliability

Sample = tuple[NDArray[np.float64], NDArray[np.int64]]


def sample(texts: int, temperature: float, *, seed: int = 0, labels: int = 4) -> Sample:
    """Sample classes from the softmax of logits, and return the logits multiplied by a temperature."""
    rng = np.random.default_rng(seed)
    true_NC = rng.standard_normal((texts, labels)) * 2
    classes_N = (rng.random((texts, 1)) > softmax(true_NC).cumsum(axis=1)).sum(axis=1)
    return true_NC * temperature, classes_N


def concatenated(*samples: Sample) -> Sample:
    return np.concatenate([one for one, _ in samples]), np.concatenate([other for _, other in samples])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    assert fit_temperature(*sample(5000, temperature)) == pytest.approx(temperature, rel=0.06)


def test_the_temperature_minimizes_the_loss() -> None:
    logits_NC, classes_N = sample(300, 2.0)
    temperature = fit_temperature(logits_NC, classes_N, prior_texts=0)

    def loss(value: float) -> float:
        return float(-np.log(softmax(logits_NC / value)[np.arange(300), classes_N]).sum())

    assert loss(temperature) < min(loss(temperature * 1.01), loss(temperature / 1.01))


def test_a_head_without_errors_gets_a_finite_temperature() -> None:
    classes_N = np.arange(30) % 3
    assert 0.1 < fit_temperature(np.eye(3)[classes_N] * 7.0, classes_N) < 7
    assert fit_temperature(np.zeros((30, 3)), classes_N) > 0  # constant logits


def test_the_prior_temperature() -> None:
    logits_NC, classes_N = sample(60, 4.0)
    prior_NC = softmax(logits_NC / 1.0)
    without_prior = fit_temperature(logits_NC, classes_N)
    with_prior = fit_temperature(logits_NC, classes_N, prior_NC, 60)
    assert 1 < with_prior < without_prior
    assert fit_temperature(logits_NC, classes_N, prior_NC, 10**7) == pytest.approx(1, abs=1e-3)


def test_languages_with_enough_texts_get_their_own_temperatures() -> None:
    few = LANGUAGE_TEXTS - 1
    logits_NC, classes_N = concatenated(
        sample(2000, 1.0), sample(2000, 3.0, seed=1), sample(few, 9.0, seed=2), sample(9, 1.0)
    )
    codes = ["deu_Latn"] * 2000 + ["swh_Latn"] * 2000 + ["tpi_Latn"] * few + [None] * 9
    assert frequent_languages(codes) == ["deu_Latn", "swh_Latn"]
    fit = fit_temperatures(logits_NC, classes_N, codes, frequent_languages(codes))
    assert 1.2 < fit.temperature < 3
    assert fit.temperatures == pytest.approx({"deu_Latn": 1.0, "swh_Latn": 3.0}, rel=0.1)
    expected_N = [fit.temperatures["swh_Latn"], fit.temperature, fit.temperature]
    assert select_temperatures(fit, ["swh_Latn", "tpi_Latn", None]).tolist() == expected_N


def test_the_calibration_error_of_twenty_texts_by_hand() -> None:
    """Ten with 0.95, nine of them right; ten with 0.65, five of them right."""
    probabilities_NC = np.array([[0.95, 0.05]] * 10 + [[0.35, 0.65]] * 10)
    classes_N = np.array([0] * 9 + [1] + [1] * 5 + [0] * 5)
    assert calibration_error(probabilities_NC, classes_N) == pytest.approx((0.05 + 0.15) / 2)
    rows = reliability(probabilities_NC, classes_N)
    assert len(rows) == BINS == 15
    assert rows[9] == pytest.approx((0.5, 0.65, 0.5))  # from 9/15 to 10/15
    assert rows[14] == pytest.approx((0.5, 0.95, 0.9))
    assert sum(texts for texts, _, _ in rows) == 1


def test_errors_cancel_within_a_bin_only() -> None:
    one_bin = np.array([[0.61, 0.39], [0.65, 0.35]])
    assert calibration_error(one_bin, np.array([1, 0])) == pytest.approx(abs(0.63 - 0.5))
    two_bins = np.array([[0.59, 0.41], [0.65, 0.35]])
    assert calibration_error(two_bins, np.array([1, 0])) == pytest.approx((0.59 + 0.35) / 2)
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


def test_the_report_is_cross_validated() -> None:
    logits_NC, classes_N = concatenated(sample(1500, 3.0), sample(1500, 0.7, seed=1))
    codes = ["aaa_Latn"] * 1500 + ["bbb_Latn"] * 1500
    report = fit_calibration(logits_NC, classes_N, codes, np.ones(3000))
    assert (report.texts, report.folds, report.threshold) == (3000, 5, None)
    assert report.error_before > 0.08
    assert report.error_after < 0.03
    assert report.loss_after < report.loss_before
    assert report.accuracy == pytest.approx((logits_NC.argmax(axis=1) == classes_N).mean())
    assert report.fitted.temperatures == pytest.approx({"aaa_Latn": 3.0, "bbb_Latn": 0.7}, rel=0.1)
    first = report.languages["aaa_Latn"]
    assert first.texts == 1500
    assert first.error_before > 0.15 > 0.05 > first.error_after


def test_the_report_uses_held_out_texts() -> None:
    """Random labels, and 50 texts per language: temperatures improve the loss only on the rows used for fitting."""
    rng = np.random.default_rng(0)
    logits_NC, classes_N = rng.standard_normal((2000, 2)) * 3, rng.integers(0, 2, 2000)
    codes = [f"l{number // 50:02}" for number in range(2000)]
    report = fit_calibration(logits_NC, classes_N, codes, np.ones(2000))
    within = softmax(logits_NC / select_temperatures(report.fitted, codes)[:, None])
    own_loss = -np.log(within[np.arange(2000), classes_N]).mean()
    assert report.loss_after > own_loss


def test_the_accuracy_above_a_threshold_is_of_held_out_texts() -> None:
    logits_NC, classes_N = sample(4000, 2.0)
    report = fit_calibration(logits_NC, classes_N, [None] * 4000, np.ones(4000), threshold=0.8)
    probabilities_NC = softmax(logits_NC / 2)
    sure_N = probabilities_NC.max(axis=1) >= 0.8
    right_N = probabilities_NC.argmax(axis=1) == classes_N
    assert report.threshold == 0.8
    assert report.coverage == pytest.approx(sure_N.mean(), abs=0.03)
    assert report.accuracy_above == pytest.approx(right_N[sure_N].mean(), abs=0.02)
    calibration = fit_calibration(logits_NC, classes_N, [None] * 4000, np.ones(4000), target_accuracy=0.85)
    assert calibration.threshold is not None
    assert 0.3 < calibration.threshold < 0.9
    assert calibration.accuracy_above == pytest.approx(0.85, abs=0.02)
    assert calibration.coverage > report.coverage


def test_the_lowest_sufficient_threshold() -> None:
    sure_N = np.linspace(0.99, 0.6, 40)
    probabilities_NC = np.stack([sure_N, 1 - sure_N], axis=1)
    classes_N = np.array([0] * 20 + [1, 0] * 10)
    limit = find_threshold(probabilities_NC, classes_N, 0.95)
    assert limit is not None
    assert sure_N[20] > limit  # 21 texts of 22 are right
    above_N = sure_N >= limit
    assert above_N.sum() == 22
    assert find_threshold(probabilities_NC, classes_N, 0.5) == 0.0
    assert find_threshold(probabilities_NC, 1 - classes_N, 0.9) is None
    equal_NC = np.full((40, 2), [0.7, 0.3])
    assert find_threshold(equal_NC, classes_N, 0.95) is None  # no threshold separates them
    few = slice(MIN_THRESHOLD_TEXTS - 1)
    assert find_threshold(probabilities_NC[few], classes_N[few], 0.1) is None


def test_refused_calibrations() -> None:
    logits_NC, classes_N = sample(200, 1.0)
    with pytest.raises(DataError, match="there are 19 different labeled texts; give 20 or more"):
        fit_calibration(logits_NC[:19], classes_N[:19], [None] * 19, np.ones(19))
    with pytest.raises(DataError, match="no threshold gives an accuracy of 1 on 10 texts or more; lower the target"):
        fit_calibration(logits_NC, np.zeros(200, int), [None] * 200, np.ones(200), target_accuracy=1.0)


def test_resolution_of_threshold_and_label() -> None:
    weight_CE = np.ones((2, 3), np.float32)
    head = Head("sequence", ("a", "b"), weight_CE, None, 1.0, threshold=0.7, abstain="ask")
    assert resolve_abstention(head, None, None) == (0.7, "ask")
    assert resolve_abstention(head, 0, None) == (0, "ask")
    assert resolve_abstention(head, 0.5, "who knows") == (0.5, "who knows")
    task = TaskSpec(kind="sequence", labels=("a", "unsure"), head="x")
    assert resolve_abstention(task, None, None)[0] == 0
    for limit, label, message in (
        (1.5, None, "the threshold is 1.5, expected 0 to 1"),
        (float("nan"), None, "the threshold is nan"),
        (0.5, None, "abstains with the label 'unsure', which is one of its labels"),
        (0.5, "a", "abstains with the label 'a', which is one of its labels"),
        (0.5, " ", "abstains with the label ' ', expected a word"),
        (0.5, "x\ny", "expected a word"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve_abstention(task, limit, label)
    choices = TaskSpec(kind="multiple_choice", labels=(), head="x")
    with pytest.raises(UsageError, match="abstains with the label '1', which is one of its labels"):
        resolve_abstention(choices, 0.5, "1")


def test_temperatures_of_texts_in_a_head() -> None:
    rng = np.random.default_rng(1)
    head = Head("sequence", ("a", "b"), rng.standard_normal((2, 4)).astype(np.float32), None, 2.0)
    pooled_NE = rng.standard_normal((3, 4)).astype(np.float32)
    own_NC = head.probabilities(pooled_NE, np.array([1.0, 2.0, 4.0]))
    np.testing.assert_array_equal(own_NC[1], head.probabilities(pooled_NE)[1])
    np.testing.assert_allclose(own_NC, softmax(head.logits(pooled_NE) / np.array([[1], [2], [4]])))
    assert select_temperatures(Temperatures(2.0, {}), ["x"]).tolist() == [2]
