"""Cross-validation with groups, which are not split between folds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtllm_edge import Classifier, Embedder
from mtllm_edge.errors import DataError
from mtllm_edge.tasks.cross_validation import assign_folds
from mtllm_edge.tasks.fitting import STRENGTHS, Examples, fit_head
from tests.fixtures.cli_result import Run
from tests.runtime.tasks.test_fitting import LABELS, TEXTS, write_csv

GROUPS = [f"document {number // 2 % 9}" for number in range(len(TEXTS))]


def check(labels: list[str], groups: list[Any], folds: int) -> None:
    """Check that each text is tested once, by a fit on all labels and on no text of its group."""
    folds_of_texts = assign_folds(labels, groups)
    assert len(folds_of_texts) == folds
    assert sorted(np.concatenate([test for _, test in folds_of_texts])) == list(range(len(labels)))
    for train, test in folds_of_texts:
        assert {labels[index] for index in train} == set(labels)
        assert not {groups[index] for index in train} & {groups[index] for index in test}
        assert len(train) + len(test) == len(labels)


def test_groups_stay_together() -> None:
    check(LABELS, GROUPS, 5)
    check(["a", "b"] * 20, [number // 4 for number in range(40)], 5)
    check(["a", "a", "b", "b"], ["x", "y", "x", "y"], 2)
    check(["a", "b", "b", "c", "c", "a"], [1, 1, 2, 2, 3, 3], 3)  # in two folds, a label would be missing from a fit
    check(["a"] * 30 + ["b"] * 3, [*range(30), "x", "x", "y"], 5)  # a label with fewer texts than folds


def test_groups_prevent_leakage() -> None:
    """Each group has its own cluster and a random label, so only a leak gives an accuracy above chance."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 6)
    places_GE = rng.standard_normal((40, 60))
    vectors_NE = (places_GE[groups] + 0.05 * rng.standard_normal((240, 60))).astype(np.float32)
    labels = ["heads" if rng.random() < 0.5 else "tails" for _ in range(40)]
    text_labels = [labels[group] for group in groups]
    _, without_groups = fit_head(vectors_NE, Examples([], text_labels, None, "sequence"))
    calls: list[tuple[int, int]] = []
    _, with_groups = fit_head(
        vectors_NE, Examples([], text_labels, groups.tolist(), "sequence"), lambda *call: calls.append(call)
    )
    assert without_groups.accuracy > 0.95
    assert with_groups.accuracy < 0.7
    assert (without_groups.groups, with_groups.groups) == (None, 40)
    regressions = len(STRENGTHS) * with_groups.folds + 1
    assert calls == [(fits, regressions) for fits in range(1, regressions + 1)]


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        (["a", "a", "b", "b"], [1, 2, 3], "there are 4 labels and 3 groups"),
        (["a", "a", "b", "b"], [1, 2, 3, 3], "all texts with the label 'b' are in one group"),
        (["a", "a", "b", "b"], [1, 1, 1, 1], "all texts with the label 'a' are in one group"),
        (["a", "a", "b", "b"], [1, 2, 1, None], "a group is None, expected a word or a number"),
        (["a", "a", "b", "b"], [1.0, 2.0, 1.0, math.nan], "a group is nan, expected a word or a number"),
        (["a", "a", "b", "b"], [1, 2, 1, ["x"]], r"a group is \['x'\], expected a word or a number"),
    ],
)
def test_invalid_groups(labels: list[str], groups: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        assign_folds(labels, groups)


def test_groups_that_cannot_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups with the rare label are in one fold in every assignment."""
    from sklearn.model_selection import StratifiedGroupKFold

    both = [(np.arange(2, 60), np.arange(2)), (np.arange(2), np.arange(2, 60))]
    monkeypatch.setattr(StratifiedGroupKFold, "split", lambda *_: iter(both))
    with pytest.raises(DataError, match=r"do not split into 5 folds .* leave the groups out"):
        assign_folds(["rare"] * 2 + ["a"] * 29 + ["b"] * 29, [*range(60)])


def test_a_classifier_with_groups(tiny_bundle: Path) -> None:
    with Embedder.load(tiny_bundle, threads=2) as embedder:
        classifier = Classifier(embedder).fit([*TEXTS, TEXTS[0]], [*LABELS, LABELS[0]], groups=np.array([*GROUPS, "x"]))  # type: ignore[arg-type]
        assert (classifier.report_.groups, classifier.report_.texts) == (
            9,
            55,
        )  # the repeated text and its group are dropped
        with pytest.raises(DataError, match="55 labels and 2 groups"):
            classifier.fit(TEXTS, LABELS, groups=["a", "b"])


def test_the_command(run: Run, fresh_bundle: Path) -> None:
    write_csv(Path("in.csv"), [*zip(TEXTS, LABELS, GROUPS, strict=True)], ("text", "label", "document"))
    result = run("fit", fresh_bundle, "in.csv", "-t", "words", "--group-column", "document")
    assert result.code == 0, result.err
    assert "55 texts in 5 folds of 9 groups, each predicted without its group" in result.out


BAD_GROUPS: dict[str, tuple[Callable[[int], str], str, int, str]] = {
    "no such column": (lambda number: "x", "author", 2, "in.csv row 2 has no column 'author'"),
    "an empty cell": (lambda number: "" if number == 2 else "x", "document", 1, "in.csv row 4 has the group ''"),
    "one group": (lambda number: "x", "document", 1, "all texts with the label 'animals' are in one group"),
}


@pytest.mark.parametrize(("group", "column", "code", "message"), BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_invalid_groups_in_a_file(
    run: Run, fresh_bundle: Path, group: Callable[[int], str], column: str, code: int, message: str
) -> None:
    rows = [(text, label, group(number)) for number, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))]
    write_csv(Path("in.csv"), rows, ("text", "label", "document"))
    before = sorted(fresh_bundle.rglob("*"))
    result = run("fit", fresh_bundle, "in.csv", "-t", "words", "--group-column", column)
    assert (result.code, result.out) == (code, "")
    assert message in result.err.splitlines()[-1]
    assert sorted(fresh_bundle.rglob("*")) == before
