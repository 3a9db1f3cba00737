"""Heads fitted to labeled texts: computation compared with NumPy, the Python interface, and the command."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.embedder import TruncationWarning
from mtllm_edge.errors import DataError, ModelError, UsageError
from mtllm_edge.tasks.fitting import Examples, fit_head, prepare_examples, unique_indices, validate_labels
from mtllm_edge.tasks.head import softmax
from tests.fixtures import tiny_bundle
from tests.fixtures.cli_result import Run
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close

WORDS = {
    "animals": ("cat", "dog", "cow", "hen"),
    "plants": ("ash", "oak", "fir", "elm"),
    "числа": ("один", "два", "три"),
}
TEXTS = [f"{word}{end}" for end in ("", "!", " a", " the", " is") for words in WORDS.values() for word in words]
LABELS = [label for _ in range(5) for label, words in WORDS.items() for _ in words]


def make_clusters(
    counts: dict[str, int], *, distance: float = 3.0, width: int = 12
) -> tuple[NDArray[np.float32], list[str]]:
    """Gaussian clusters with a `distance`, in dimensions of very different scales like those of an LLM."""
    rng = np.random.default_rng(1)
    labels = [label for label, count in counts.items() for _ in range(count)]
    centres = {label: distance * rng.standard_normal(width) / np.sqrt(width) for label in counts}
    scale = 10.0 ** rng.uniform(-2, 3, width)
    rows = [(centres[label] + rng.standard_normal(width)) * scale + scale for label in labels]
    return np.array(rows, np.float32), labels


@pytest.fixture(scope="module")
def embedder(tiny_bundle: Path) -> Iterator[Embedder]:
    with Embedder.load(tiny_bundle, threads=2) as loaded:
        yield loaded


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")])
def test_a_head_equals_a_regression_on_standardized_vectors(labels: tuple[str, ...]) -> None:
    from sklearn.linear_model import LogisticRegression

    vectors_NE, text_labels = make_clusters(dict.fromkeys(labels, 30))
    head, report = fit_head(vectors_NE, Examples([], text_labels, None, "sequence"))
    assert (head.labels, head.kind) == (labels, "sequence")
    assert head.weight_CE.shape == (len(labels), 12)
    wide_NE = vectors_NE.astype(np.float64)
    standard_NE = (wide_NE - wide_NE.mean(axis=0)) / wide_NE.std(axis=0)
    model = LogisticRegression(C=report.c, max_iter=1000).fit(standard_NE, text_labels)
    expected_NC = model.predict_proba(standard_NE)
    probabilities_NC = softmax(head.logits(vectors_NE))
    np.testing.assert_allclose(probabilities_NC, expected_NC, atol=1e-4)
    np.testing.assert_allclose(
        head.probabilities(vectors_NE), softmax(np.log(expected_NC) / head.temperature), atol=1e-3
    )


def test_the_report_is_of_held_out_texts() -> None:
    """Random labels, which a head reproduces only on its training texts."""
    rng = np.random.default_rng(2)
    vectors_NE = rng.standard_normal((120, 200)).astype(np.float32)
    labels = [*rng.choice(["heads", "tails"], 120)]
    head, report = fit_head(vectors_NE, Examples([], labels, None, "sequence"))
    training_accuracy = (head.logits(vectors_NE).argmax(axis=1) == (np.array(labels) == "tails")).mean()
    assert training_accuracy > 0.8
    assert 0.3 < report.accuracy < 0.7
    assert report.calibration_error < 0.2  # low confidence


def test_the_report_has_scores_per_label() -> None:
    vectors_NE, labels = make_clusters({"far": 40, "left": 20, "right": 20}, distance=1.5)
    rng = np.random.default_rng(3)
    vectors_NE[:40, 0] += 1e5
    vectors_NE[40:] = vectors_NE[40:][rng.permutation(40)]  # left and right are one cluster
    _, report = fit_head(vectors_NE, Examples([], labels, None, "sequence"))
    assert (report.texts, report.folds, report.commonest) == (80, 5, 0.5)
    far, left, right = report.labels.values()
    assert (far.texts, far.precision, far.recall, far.f1) == (40, 1.0, 1.0, 1.0)
    assert max(left.f1, right.f1) < 0.8
    assert report.macro_f1 == pytest.approx((far.f1 + left.f1 + right.f1) / 3)
    correct = far.texts + left.recall * left.texts + right.recall * right.texts
    assert report.accuracy == pytest.approx(correct / 80)


def test_counts_of_labels_and_folds() -> None:
    assert prepare_examples(list("vwxyz"), ["b", "a", "b", "a", "a"]).counts == {"a": 3, "b": 2}
    vectors_NE, labels = make_clusters({"a": 9, "b": 3})
    _, report = fit_head(vectors_NE, Examples([], labels, None, "sequence"))
    assert report.folds == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "there are no labeled texts"),
        (["a", "a"], "the only label is 'a'; give texts of two labels or more"),
        (["a", "a", "b"], "'b' of 2 labels: one text only; give two"),
        (list("abcdee"), "'a', 'b', 'c' and 1 more labels of 5 labels: one text only"),
        (["a", 1], "the label of text 1 is 1, expected a word"),
        (["a", " "], "the label of text 1 is ' ', expected a word"),
        (["a", "b\nc"], r"the label of text 1 is 'b\\nc', which has control characters"),
    ],
)
def test_invalid_labels(labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate_labels(labels)


def test_distinct_texts() -> None:
    texts = ["x", "y", "x", "x"]
    assert unique_indices(texts, ["a", "a", "b", "a"]) == [0, 1, 2]
    assert unique_indices([("x", "y"), ("x", "z"), ("x", "y")], ["a", "a", "a"]) == [0, 1]


def test_fit_predict_and_save(embedder: Embedder, fresh_bundle: Path) -> None:
    with Embedder.load(fresh_bundle, threads=2) as own:
        classifier = Classifier(own)
        with pytest.raises(UsageError, match=r"no task yet; call fit"):
            classifier.predict(TEXTS)
        with pytest.raises(UsageError, match=r"no task was fitted yet"):
            classifier.save_task("words")
        assert classifier.fit(np.array(TEXTS), np.array(LABELS)) is classifier  # type: ignore[arg-type]
        assert classifier.classes_.tolist() == sorted(WORDS) == list(classifier.labels)
        assert (classifier.task, classifier.kind) == (None, "sequence")
        predicted, probabilities_NC = classifier.predict(TEXTS), classifier.predict_proba(TEXTS)
        assert (predicted == np.array(LABELS)).mean() > 0.9
        assert classifier.report_.accuracy > 0.6
        assert (classifier.classes_[probabilities_NC.argmax(axis=1)] == predicted).all()
        np.testing.assert_allclose(probabilities_NC.sum(axis=1), 1)
        (topic,) = classifier.classify(TEXTS[:1], task="topic")
        assert tuple(topic.probabilities) == tiny_bundle.TASKS["topic"]
        with pytest.raises(UsageError, match="is no license"):
            classifier.save_task("words", license=" ")
        classifier.save_task("words", license="CC-BY-4.0")
        assert classifier.task == "words"
        with pytest.raises(UsageError, match=r"has a task 'words' already; .* --force"):
            classifier.save_task("words")
        (prediction,) = classifier.classify(TEXTS[:1], task="words")
    Bundle.open(fresh_bundle).verify()
    with Classifier.load(fresh_bundle, task="words", threads=2) as loaded:
        assert_probabilities_close(loaded.predict_proba(TEXTS), probabilities_NC, LLAMA_CPP)
        assert loaded.classify(TEXTS[:1])[0].label == prediction.label
        assert list(Bundle.open(fresh_bundle).manifest.tasks) == ["topic", "sentiment", "words"]
    source = Bundle.open(fresh_bundle).manifest.sources[-1]
    assert (source.part, source.name, source.license) == ("task words", "labeled texts", "CC-BY-4.0")


def test_fit_accepts_pairs_but_no_choices(embedder: Embedder) -> None:
    pairs = [(text, text if label == "animals" else "elm oak") for text, label in zip(TEXTS, LABELS, strict=True)]
    classifier = Classifier(embedder).fit(pairs, LABELS)
    assert classifier.kind == "pair"
    assert classifier.predict(pairs[:3]).shape == (3,)
    with pytest.raises(DataError, match="a pair"):
        classifier.predict(["cat"])
    with pytest.raises(UsageError, match="train multiple choice with"):
        Classifier(embedder).fit([(text, ["a", "b"]) for text in TEXTS], LABELS)
    with pytest.raises(DataError, match="there are 55 texts and 2 labels"):
        Classifier(embedder).fit(TEXTS, ["a", "b"])


def test_predict_proba_refuses_choices(tiny_variant: Callable[..., Path]) -> None:
    bundle = tiny_variant(tasks=None, kinds=None, seed=5)
    choices = tiny_bundle.make_tiny_bundle(bundle.parent / "choices", tasks={"mc": ()}, kinds={"mc": "multiple_choice"})
    with Classifier.load(choices, threads=2) as classifier:
        assert classifier.predict([("the team", ["is good", "is bad"])])[0] in ("0", "1")
        with pytest.raises(UsageError, match="no fixed classes"):
            classifier.predict_proba([("the team", ["is good", "is bad"])])


def test_fit_warns_of_truncation_and_refuses_invalid_texts(embedder: Embedder) -> None:
    with pytest.warns(TruncationWarning, match="1 of 56 texts were truncated"):
        Classifier(embedder).fit([*TEXTS, "z" * 500], [*LABELS, "plants"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classifier(embedder).fit(TEXTS, LABELS)
    with pytest.raises(DataError, match="text 1 is empty"):
        Classifier(embedder).fit(["a", " ", "b", "c"], list("xxyy"))


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_the_command(run: Run, fresh_bundle: Path, tmp_path: Path) -> None:
    write_csv(Path("in.csv"), [*zip(TEXTS, LABELS, strict=True), ("cat", "animals")])
    Path("more.jsonl").write_text('{"text": "bee", "label": "animals", "n": 1}\n', encoding="utf-8")
    before = (fresh_bundle / "bundle.json").read_bytes()
    result = run("fit", fresh_bundle, "in.csv", "more.jsonl", "--task", "words")
    assert result.code == 0, result.err
    assert "note: 1 row left out that repeat text and label of another" in result.err
    assert "56 texts: animals 21, plants 20, числа 15" in result.err
    for words in ("accuracy", "macro F1", "calibration error", "temperature", "56 texts in 5 folds", "числа"):
        assert words in result.out
    bundle = Bundle.open(fresh_bundle)
    bundle.verify()
    task = bundle.manifest.tasks["words"]
    assert (task.kind, task.labels, task.head) == ("sequence", tuple(sorted(WORDS)), "tasks/words/head.safetensors")
    assert task.temperature != 1
    assert "temperature" in (fresh_bundle / "bundle.json").read_text()
    assert (fresh_bundle / "bundle.json").read_bytes() != before
    assert run("verify", fresh_bundle).code == 0
    output = run("classify", "-b", fresh_bundle, "-t", "words", "cat", "--format", "jsonl").out
    assert '"label":"animals"' in output


def test_the_license_of_a_fitted_task(run: Run, fresh_bundle: Path) -> None:
    write_csv(Path("in.csv"), [*zip(TEXTS, LABELS, strict=True)])
    before = Bundle.open(fresh_bundle).manifest.sources
    for license_text in ("", "two\nlines", "x" * 201):
        refused = run("fit", fresh_bundle, "in.csv", "-t", "words", "--license", license_text)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "is no license; give an SPDX identifier" in refused.err
    assert run("fit", fresh_bundle, "in.csv", "-t", "words", "--license", "CC-BY-NC-4.0").code == 0
    Bundle.open(fresh_bundle).verify()
    source = WeightSource(part="task words", name="in.csv", license="CC-BY-NC-4.0")
    assert Bundle.open(fresh_bundle).manifest.sources == (*before, source)
    (line,) = (line for line in run("info", fresh_bundle).out.splitlines() if "task words" in line and "in.csv" in line)
    assert "CC-BY-NC-4.0 (NON-COMMERCIAL USE ONLY)" in line
    assert run("fit", fresh_bundle, "in.csv", "-t", "words", "--force").code == 0  # a new task without a known source
    assert Bundle.open(fresh_bundle).manifest.sources == before


def test_force_replaces_a_task(run: Run, fresh_bundle: Path) -> None:
    write_csv(Path("in.csv"), [*zip(TEXTS, LABELS, strict=True)])
    refused = run("fit", fresh_bundle, "in.csv", "-t", "topic")
    assert refused.code == 2
    assert "has a task 'topic' already" in refused.err
    assert Bundle.open(fresh_bundle).manifest.tasks["topic"].labels == tiny_bundle.TASKS["topic"]
    assert run("fit", fresh_bundle, "in.csv", "-t", "topic", "--force").code == 0
    bundle = Bundle.open(fresh_bundle)
    bundle.verify()
    assert bundle.manifest.tasks["topic"].labels == tuple(sorted(WORDS))
    assert [path.relative_to(fresh_bundle).as_posix() for path in (fresh_bundle / "tasks" / "topic").iterdir()] == [
        bundle.manifest.tasks["topic"].head
    ]


BAD_SHEETS = {
    "one label": ([("a", "x"), ("b", "x")], [], 1, "the only label is 'x'"),
    "a rare label": ([("a", "x"), ("b", "x"), ("c", "y")], [], 1, "'y' of 2 labels: one text only"),
    "the same text twice": ([("a", "x"), ("b", "x"), ("c", "y"), ("c", "y")], [], 1, "'y' of 2 labels: one text only"),
    "no rows": ([], [], 1, "in.csv holds no rows"),
    "an empty label": ([("a", "x"), ("b", " ")], [], 1, "in.csv row 3 has the label ' '"),
    "no such column": ([("a", "x")], ["--label-column", "mood"], 2, "in.csv row 2 has no column 'mood'"),
    "no name for a task": ([("a", "x")], ["-t", "../x"], 2, "'../x' is no name for a task"),
    "no such file": ([("a", "x")], ["none.csv"], 2, "none.csv does not exist"),
    "texts without labels": ([], ["in.txt"], 2, "in.txt should end in .csv or .jsonl"),
}


@pytest.mark.parametrize(("rows", "options", "code", "message"), BAD_SHEETS.values(), ids=BAD_SHEETS)
def test_unusable_files(
    run: Run,
    fresh_bundle: Path,
    rows: list[tuple[str, ...]],
    options: list[str],
    code: int,
    message: str,
) -> None:
    write_csv(Path("in.csv"), rows)
    before = sorted(path for path in fresh_bundle.rglob("*"))
    result = run("fit", fresh_bundle, "in.csv", "-t", "words", *options)
    assert (result.code, result.out) == (code, "")
    assert message in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert sorted(fresh_bundle.rglob("*")) == before


def test_choices_are_refused(run: Run, fresh_bundle: Path) -> None:
    write_csv(Path("in.csv"), [("a", "0", '["b", "c"]')], ("text", "label", "choices"))
    result = run("fit", fresh_bundle, "in.csv", "-t", "words")
    assert result.code == 2
    assert "mtllm-edge train finetune" in result.err


def test_an_interrupted_write_keeps_the_bundle(
    embedder: Embedder, fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in fresh_bundle.rglob("*") if path.is_file()}
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.name == "bundle.json":
            raise KeyboardInterrupt
        return replace(self, target)

    with Embedder.load(fresh_bundle, threads=2) as own:
        classifier = Classifier(own).fit(TEXTS, LABELS)
        monkeypatch.setattr(Path, "replace", fail)
        for name in ("words", "topic"):
            with pytest.raises(KeyboardInterrupt):
                classifier.save_task(name, force=True)
    assert {path: path.read_bytes() for path in fresh_bundle.rglob("*") if path.is_file()} == before
    Bundle.open(fresh_bundle).verify()


def test_a_task_folder_outside_the_bundle(embedder: Embedder, fresh_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (fresh_bundle / "tasks" / "words").symlink_to(tmp_path / "elsewhere")
    with (
        Embedder.load(fresh_bundle, threads=2) as own,
        pytest.raises(ModelError, match="a link that leaves the bundle"),
    ):
        Classifier(own).fit(TEXTS, LABELS).save_task("words")
    assert not list((tmp_path / "elsewhere").iterdir())
