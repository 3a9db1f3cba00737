"""Confidence and abstention: temperatures, thresholds and labels of abstentions, in manifest, Python and commands."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.bundle.manifest import FORMAT_VERSION, MANIFEST_NAME, TaskSpec, WeightSource
from mtllm_edge.bundle.validation import manifest_problems, parse_manifest
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.tasks.head import Head
from mtllm_edge.tasks.store import add_task, update_calibration
from tests.fixtures import tiny_bundle
from tests.fixtures.cli_result import Run
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close
from tests.runtime.tasks.test_store import files_of

TEXTS = ["the team is good", "не хорошо", "a bad match", "यह होटल अच्छा है"]
WORDS = ("team", "match", "hotel", "good", "bad", "the", "is", "a", "не", "और", "xyz", "качество")


def edit_task(bundle: Path, **fields: Any) -> None:
    """Edit the task `topic` in the manifest."""
    path = bundle / MANIFEST_NAME
    content = json.loads(path.read_bytes())
    content["tasks"]["topic"] |= fields
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(tiny_bundle, task="topic", threads=2) as loaded:
        yield loaded


def test_bundles_without_confidence_settings(fresh_bundle: Path, tiny_bundle: Path) -> None:
    path = fresh_bundle / MANIFEST_NAME
    content = json.loads(path.read_bytes())
    for task in content["tasks"].values():
        for key in ("temperatures", "threshold", "abstain"):
            del task[key]
    path.write_text(json.dumps(content))
    assert FORMAT_VERSION == content["format_version"] == 1
    assert Bundle.open(fresh_bundle).manifest == Bundle.open(tiny_bundle).manifest


def test_settings_are_written_and_read(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    task = msgspec.structs.replace(
        manifest.tasks["topic"], temperature=0.5, temperatures={"deu_Latn": 1.5}, threshold=0.25, abstain="ask"
    )
    manifest = msgspec.structs.replace(manifest, tasks=manifest.tasks | {"topic": task})
    assert parse_manifest(manifest.to_json(), origin="x") == manifest


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"temperatures": {"x": 0}}, "has temperature 0.0 for the language 'x', expected 1e-05 to 100000"),
    "negative": ({"temperatures": {"x": -1}}, "has temperature -1.0 for the language 'x'"),
    "huge": ({"temperatures": {"x": 1e300}}, "has temperature 1e+300 for the language 'x'"),
    "no number": ({"temperatures": {"x": "1"}}, "Expected `float`, got `str`"),
    "none": ({"temperatures": {"x": None}}, "Expected `float`, got `null`"),
    "a list": ({"temperatures": [1.0]}, "Expected `object`, got `array`"),
    "no code": ({"temperatures": {" ": 1}}, "has a temperature for the language ' ', which is no code"),
    "a long code": ({"temperatures": {"x" * 10_000: 1}}, f"for the language '{'x' * 64}', which is no code"),
    "an escape": ({"temperatures": {"\x1b[31m": 1}}, "has control characters"),
    "many": ({"temperatures": {str(n): 1 for n in range(70_000)}}, "length <= 65536"),
    "many bad": ({"temperatures": {str(n): 0 for n in range(60_000)}}, "has temperature 0.0 for the language '0'"),
    "above one": ({"threshold": 1.5}, "has the threshold 1.5, expected 0 to 1"),
    "below zero": ({"threshold": -0.1}, "has the threshold -0.1, expected 0 to 1"),
    "a word": ({"threshold": "high"}, "Expected `float | null`, got `str`"),
    "a label": (
        {"threshold": 0.5, "abstain": "sports"},
        "abstains with the label 'sports', which is one of its labels",
    ),
    "blank": ({"abstain": "  "}, "abstains with the label '  ', expected a word"),
    "lines": ({"abstain": "a\nb"}, "expected a word"),
    "unknown": ({"thresholds": 0.5}, "unknown field `thresholds`"),
}


@pytest.mark.parametrize(("fields", "message"), HOSTILE.values(), ids=HOSTILE)
def test_invalid_settings(fresh_bundle: Path, fields: dict[str, Any], message: str) -> None:
    edit_task(fresh_bundle, **fields)
    with pytest.raises(ModelError) as caught:
        Bundle.open(fresh_bundle)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-0.0"])
def test_numbers_that_json_does_not_support(fresh_bundle: Path, value: str) -> None:
    edit_task(fresh_bundle, temperatures={"x": 123.5}, threshold=None)
    path = fresh_bundle / MANIFEST_NAME
    path.write_text(path.read_text().replace("123.5", value))
    with pytest.raises(ModelError) as caught:
        Bundle.open(fresh_bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"temperature": math.nan}, {"temperatures": {"x": math.nan}}, {"threshold": math.nan}]
)
def test_nan_in_python(tiny_bundle: Path, fields: dict[str, Any]) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    task = msgspec.structs.replace(manifest.tasks["topic"], **fields)
    faults = manifest_problems(msgspec.structs.replace(manifest, tasks={"topic": task}))
    assert len(faults) == 1
    assert "nan" in faults[0]


def test_a_threshold_causes_abstentions(classifier: Classifier) -> None:
    predictions_without_threshold = classifier.classify(TEXTS)
    limit = sorted(prediction.confidence for prediction in predictions_without_threshold)[2]
    predictions = classifier.classify(TEXTS, threshold=limit)
    assert sum(prediction.abstained for prediction in predictions) == 2
    for before, after in zip(predictions_without_threshold, predictions, strict=True):
        assert after.abstained == (before.confidence < limit)
        assert after.label == ("unsure" if after.abstained else before.label)
        assert (after.probabilities, after.confidence) == (before.probabilities, before.confidence)
    (abstention,) = classifier.classify(TEXTS[:1], threshold=1, abstain="ask")
    assert (abstention.label, abstention.abstained) == ("ask", True)
    with pytest.raises(UsageError, match="which is one of its labels"):
        classifier.classify(TEXTS, threshold=0.5, abstain="sports")


def test_arguments_override_the_bundle(fresh_bundle: Path) -> None:
    edit_task(fresh_bundle, threshold=1.0, abstain="ask somebody")
    with Classifier.load(fresh_bundle, task="topic", threads=2) as classifier:
        assert {prediction.label for prediction in classifier.classify(TEXTS)} == {"ask somebody"}
        predictions = classifier.classify(TEXTS, threshold=0)
        assert not any(prediction.abstained for prediction in predictions)
        assert {prediction.label for prediction in classifier.classify(TEXTS, abstain="x")} == {"x"}
        # the method of scikit-learn returns labels
        assert classifier.predict(TEXTS).tolist() == [prediction.label for prediction in predictions]
        assert classifier.predict_proba(TEXTS).shape == (len(TEXTS), 3)


def test_abstention_with_choices(tiny_variant: Callable[..., Path]) -> None:
    bundle = tiny_variant(seed=11)
    folder = tiny_bundle.make_tiny_bundle(bundle.parent / "mc", tasks={"mc": ()}, kinds={"mc": "multiple_choice"})
    item = ("the team", ["is good", "is bad"])
    with Classifier.load(folder, threads=2) as classifier:
        (prediction,) = classifier.classify([item], threshold=1)
        assert (prediction.label, prediction.abstained, [*prediction.probabilities]) == ("unsure", True, ["0", "1"])
        assert classifier.predict([item])[0] in ("0", "1")


def test_temperatures_of_languages(fresh_bundle: Path, classifier: Classifier) -> None:
    edit_task(fresh_bundle, temperature=2.0, temperatures={"deu_Latn": 0.5})
    logits_NC = classifier._head("topic").logits(classifier._embedder.embed(TEXTS))

    def expected(temperature: float) -> list[list[float]]:
        scaled_NC = np.exp((logits_NC - logits_NC.max(axis=1, keepdims=True)) / temperature)
        rows: list[list[float]] = (scaled_NC / scaled_NC.sum(axis=1, keepdims=True)).tolist()
        return rows

    with Classifier.load(fresh_bundle, task="topic", threads=2) as own:
        for language, value in ((None, 2.0), ("deu_Latn", 0.5), ("swh_Latn", 2.0)):
            predictions = [
                [*prediction.probabilities.values()] for prediction in own.classify(TEXTS, language=language)
            ]
            assert_probabilities_close(predictions, expected(value), LLAMA_CPP)
        (pooled,) = own.classify(["the team is good " * 60], language="deu_Latn", long_texts="pool")
        (other,) = own.classify(["the team is good " * 60], long_texts="pool")
        assert pooled.confidence > other.confidence
        predictions = own.classify(TEXTS, language="de", task="sentiment")
        assert {prediction.language for prediction in predictions} == {"deu_Latn"}
        assert [prediction.probabilities for prediction in predictions] == [
            prediction.probabilities for prediction in own.classify(TEXTS, task="sentiment")
        ]


def test_settings_change_only_the_manifest(fresh_bundle: Path) -> None:
    bundle = Bundle.open(fresh_bundle)
    sources = (*bundle.manifest.sources, WeightSource(part="task topic", name="somebody's texts", license="CC-BY-4.0"))
    manifest = msgspec.structs.replace(bundle.manifest, sources=sources)
    (fresh_bundle / MANIFEST_NAME).write_bytes(manifest.to_json())
    before = files_of(fresh_bundle)
    head = Head("sequence", ("a", "b"), np.ones((2, tiny_bundle.N_EMBD), np.float32), None, 1.0)
    add_task(bundle, "other", head)
    task = msgspec.structs.replace(bundle.manifest.tasks["topic"], temperature=0.5, threshold=0.25)
    update_calibration(bundle, "topic", task)
    now = Bundle.open(fresh_bundle)
    now.verify()
    assert now.manifest.tasks["topic"] == task
    assert "other" in now.manifest.tasks  # added meanwhile
    assert now.manifest.sources == sources
    changed = {name for name, content in files_of(fresh_bundle).items() if before.get(name) != content}
    assert changed == {MANIFEST_NAME, "tasks/other/head.safetensors"}


def test_a_task_changed_meanwhile(fresh_bundle: Path) -> None:
    bundle = Bundle.open(fresh_bundle)
    head = Head("sequence", ("a", "b"), np.ones((2, tiny_bundle.N_EMBD), np.float32), None, 1.0)
    add_task(bundle, "topic", head, force=True)
    before = files_of(fresh_bundle)
    with pytest.raises(UsageError, match=r"task 'topic' .* was changed meanwhile; calibrate it again"):
        update_calibration(bundle, "topic", bundle.manifest.tasks["topic"])
    with pytest.raises(ModelError, match=r"has temperature 0\.0, expected 1e-05"):
        update_calibration(
            bundle, "sentiment", msgspec.structs.replace(bundle.manifest.tasks["sentiment"], temperature=0.0)
        )
    assert files_of(fresh_bundle) == before


def test_a_head_keeps_its_settings(fresh_bundle: Path) -> None:
    weight_CE = np.ones((2, tiny_bundle.N_EMBD), np.float32)
    head = Head("sequence", ("a", "b"), weight_CE, None, 2.0, {"deu_Latn": 3.0}, 0.5, "ask")
    task = add_task(Bundle.open(fresh_bundle), "mine", head).manifest.tasks["mine"]
    loaded_head = Head.load(fresh_bundle, task)
    assert (loaded_head.temperature, loaded_head.temperatures, loaded_head.threshold, loaded_head.abstain) == (
        2,
        {"deu_Latn": 3},
        0.5,
        "ask",
    )


def write_rows(bundle: Path, path: Path, *, languages: bool = True) -> None:
    """Write texts in two languages, labeled with the bundle's predictions, every fourth of them wrong."""
    texts = [f"{first} {second}{end}" for first in WORDS for second in WORDS for end in ("", "!")]
    with Classifier.load(bundle, task="topic", threads=2) as classifier:
        predicted_labels = [prediction.label for prediction in classifier.classify(texts)]
    labels = [label if number % 4 else "travel" for number, label in enumerate(predicted_labels)]
    codes = ["deu_Latn" if number % 2 else "swh_Latn" if number % 3 else "" for number in range(len(texts))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", *(["lang"] if languages else [])])
        writer.writerows((*row[: 3 if languages else 2],) for row in zip(texts, labels, codes, strict=True))


def test_the_command(run: Run, fresh_bundle: Path, tmp_path: Path) -> None:
    write_rows(fresh_bundle, tmp_path / "rows.csv")
    before = files_of(fresh_bundle)
    options = ("--language-column", "lang", "--target-accuracy", "0.8", "--abstain", "ask")
    result = run("calibrate", fresh_bundle, "rows.csv", "-t", "topic", *options)
    assert result.code == 0, result.err
    for words in ("288 texts in 5 folds", "calibration error", "before", "threshold", "deu_Latn", "swh_Latn", "ask"):
        assert words in result.out
    bundle = Bundle.open(fresh_bundle)
    bundle.verify()
    task = bundle.manifest.tasks["topic"]
    assert task.temperature != 1
    assert [*task.temperatures] == ["deu_Latn", "swh_Latn"]
    assert (task.threshold is None) or 0 < task.threshold < 1
    assert task.abstain == "ask"
    now = files_of(fresh_bundle)
    assert {name for name in now if now[name] != before.get(name)} == {MANIFEST_NAME}
    assert "temperature" in run("info", fresh_bundle).out
    assert "of 2 languages" in run("info", fresh_bundle).out


def test_thresholds_on_the_command_line(run: Run, fresh_bundle: Path, tmp_path: Path) -> None:
    write_rows(fresh_bundle, tmp_path / "rows.csv", languages=False)
    assert run("calibrate", fresh_bundle, "rows.csv", "-t", "topic", "--threshold", "0.999").code == 0
    task = Bundle.open(fresh_bundle).manifest.tasks["topic"]
    assert (task.threshold, task.abstain, task.temperatures) == (0.999, None, {})
    assert "unsure below a confidence of 0.999" in run("info", fresh_bundle).out
    classify = ("classify", "-b", fresh_bundle, "-t", "topic", *TEXTS)
    result = run(*classify)
    rows = list(csv.DictReader(io.StringIO(result.out, newline="")))
    assert list(rows[0]) == ["text", "label", "confidence", "truncated", "abstained"]
    assert {row["label"] for row in rows} == {"unsure"}
    assert "note: unsure of 4 texts\n" in result.err
    lines = run(*classify, "--format", "jsonl", "--abstain", "?").out.splitlines()
    line = json.loads(lines[0])
    assert (line["label"], line["abstained"], max(line["probabilities"].values())) == ("?", True, line["confidence"])
    assert "abstained" not in run(*classify, "--threshold", "0").out
    assert run("calibrate", fresh_bundle, "rows.csv", "-t", "topic").code == 0  # keeps the threshold
    assert Bundle.open(fresh_bundle).manifest.tasks["topic"].threshold == 0.999
    assert run("calibrate", fresh_bundle, "rows.csv", "-t", "topic", "--threshold", "0").code == 0
    assert Bundle.open(fresh_bundle).manifest.tasks["topic"].threshold is None


BAD_CALLS: dict[str, tuple[list[str], int, str]] = {
    "both": (["--threshold", "0.5", "--target-accuracy", "0.9"], 2, "give one of them"),
    "no share": (["--threshold", "2"], 2, "'--threshold'"),
    "nan": (["--threshold", "nan"], 2, "threshold"),
    "no such column": (["--language-column", "code"], 2, "rows.csv row 2 has no column 'code'"),
    "a label": (["--threshold", "0.5", "--abstain", "sports"], 2, "which is one of its labels"),
    "another label": (["--label-column", "lang"], 1, "but task 'topic' has science, sports, travel; correct it"),
    "other files": (["more.txt"], 2, "more.txt should end in .csv or .jsonl"),
    "accuracy": (["--target-accuracy", "1"], 1, "no threshold gives an accuracy of 1"),
    "no such task": (["-t", "mood"], 2, "has no task 'mood'"),
}


@pytest.mark.parametrize(("options", "code", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_refused_calls(run: Run, fresh_bundle: Path, options: list[str], code: int, message: str) -> None:
    rows = [
        (f"{one} {two}", "science" if number % 2 else "travel", "x")
        for number, one in enumerate(WORDS)
        for two in WORDS
    ]
    with Path("rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "lang"), *rows])
    before = files_of(fresh_bundle)
    result = run("calibrate", fresh_bundle, "rows.csv", "-t", "topic", *options)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert files_of(fresh_bundle) == before


def test_too_few_rows_and_invalid_codes(run: Run, fresh_bundle: Path) -> None:
    Path("few.csv").write_text("text,label,lang\na,sports,x\nb,travel,y\nb,travel,y\n")
    result = run("calibrate", fresh_bundle, "few.csv", "-t", "topic")
    assert (result.code, result.err.splitlines()[0]) == (
        1,
        "note: 1 row left out that repeat text and label of another",
    )
    assert "there are 2 different labeled texts; give 20 or more" in result.err
    Path("bad.jsonl").write_text('{"text": "a", "label": "sports", "lang": 7}\n')
    result = run("calibrate", fresh_bundle, "bad.jsonl", "-t", "topic", "--language-column", "lang")
    assert "bad.jsonl line 1, column 'lang', holds 7, expected a language code" in result.err


def test_windows_and_thresholds_together(classifier: Classifier) -> None:
    (prediction,) = classifier.classify(["a bad match " * 60], long_texts="pool", threshold=1)
    assert (prediction.abstained, prediction.label, prediction.truncated) == (True, "unsure", False)
    assert prediction.windows > 1


def test_an_embedder_ignores_the_settings(fresh_bundle: Path) -> None:
    edit_task(fresh_bundle, temperature=9.0)
    with Embedder.load(fresh_bundle, threads=2) as changed:
        one_NE = changed.embed(TEXTS)
    edit_task(fresh_bundle, temperature=1.0)
    with Embedder.load(fresh_bundle, threads=2) as embedder:
        np.testing.assert_array_equal(embedder.embed(TEXTS), one_NE)


def test_a_label_called_unsure(tmp_path: Path) -> None:
    """A task may have such a label if it does not use it for abstentions."""
    bundle = tiny_bundle.make_tiny_bundle(tmp_path / "bundle", tasks={"mood": ("sure", "unsure")})
    manifest = Bundle.open(bundle).manifest
    with Classifier.load(bundle, threads=2) as classifier:
        assert classifier.classify(["a"])[0].label in ("sure", "unsure")
        with pytest.raises(UsageError, match="'unsure', which is one of its labels; name another one"):
            classifier.classify(["a"], threshold=0.5)
    task: TaskSpec = msgspec.structs.replace(manifest.tasks["mood"], threshold=0.5)
    with pytest.raises(ModelError, match="'unsure', which is one of its labels"):
        update_calibration(Bundle.open(bundle), "mood", task)
