"""The reference model in the repository: joined as in the README, then applied to real sentences."""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.errors import EngineError, ModelError
from mtllm_edge.tasks.store import remove_task
from mtllm_edge_export.parts.join import join
from tests.docs.pages import blocks_of
from tests.fixtures.subprocesses import run_python
from tests.fixtures.tolerances import INT8, assert_probabilities_close
from tests.runtime.test_isolation import OFFLINE, UNIMPORTABLE

ROOT = Path(__file__).parents[1]
PARTS = ROOT / "reference" / "parts"
LANGUAGES = ("amh_Ethi", "deu_Latn", "eng_Latn", "rus_Cyrl", "swh_Latn", "tel_Telu", "tha_Thai", "zho_Hans")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "bundle"
    join(PARTS, out)
    return out


@pytest.fixture(scope="module")
def topics() -> dict[str, list[tuple[str, str]]]:
    """Labels and texts of each language."""
    rows = defaultdict(list)
    with (ROOT / "benchmarks" / "demo_topics.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows[row["language"]].append((row["label"], row["text"]))
    return rows


def test_the_shipped_files_are_small_and_complete(bundle: Path) -> None:
    sizes = [path.stat().st_size for path in PARTS.rglob("*") if path.is_file()]
    assert sum(sizes) <= 90e6
    assert max(sizes) <= 50e6
    opened = Bundle.open(bundle)
    opened.verify()
    assert set(opened.manifest.tasks) == {"topic", "sentiment"}
    assert all("NC" not in source.license for source in opened.manifest.sources)


def test_topics_in_many_scripts(bundle: Path, topics: dict[str, list[tuple[str, str]]]) -> None:
    texts = [text for language in LANGUAGES for _, text in topics[language]]
    labels = [label for language in LANGUAGES for label, _ in topics[language]]
    with Classifier.load(bundle, task="topic") as classifier:
        predicted_labels = [prediction.label for prediction in classifier.classify(texts)]
        reviews = classifier.classify(
            ["Makanannya enak sekali dan pelayanannya ramah!", "Hotel ini kotor dan sangat mengecewakan."],
            task="sentiment",
        )
    hits = sum(predicted == expected for predicted, expected in zip(predicted_labels, labels, strict=True))
    assert hits / len(labels) > 0.6  # chance is 1/7, the most frequent topic has 1/4
    assert [review.label for review in reviews] == ["positive", "negative"]


def test_the_quickstart_prints_what_the_readme_shows(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "reference").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    program, documented_output = (
        block.text for block in blocks_of(ROOT / "README.md") if block.language in ("python", "text")
    )
    exec(compile(program, "README.md", "exec"), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = [line.split() for line in documented_output.splitlines()]
    assert [label for label, _ in printed] == [label for label, _ in expected]
    for (_, confidence), (_, expected_confidence) in zip(printed, expected, strict=True):
        # int8 differs between processors
        assert float(confidence) == pytest.approx(float(expected_confidence), abs=0.1)


def test_a_batch_equals_single_texts(bundle: Path, topics: dict[str, list[tuple[str, str]]]) -> None:
    texts = [topics[language][number][1] for number in range(4) for language in LANGUAGES]
    with Embedder.load(bundle) as embedder:
        batched = embedder.embed(texts)
        single = np.concatenate([embedder.embed([text]) for text in texts])
    # Sums are computed in another order, and some values of int8 are rounded differently.
    lengths = np.linalg.norm(batched, axis=1) * np.linalg.norm(single, axis=1)
    assert ((batched * single).sum(axis=1) / lengths).min() > 0.9999


def test_two_bundles_in_one_process(bundle: Path, topics: dict[str, list[tuple[str, str]]], tmp_path: Path) -> None:
    """Two bundles with different tasks return the same results together as separately."""
    second = Path(shutil.copytree(bundle, tmp_path / "second"))
    learn_science(second, topics)
    texts = [text for language in ("rus_Cyrl", "tha_Thai") for _, text in topics[language][:4]]
    expected: dict[str, NDArray[np.float64]] = {}
    for path, task in ((bundle, "topic"), (second, "science")):
        with Classifier.load(path, task=task) as classifier:
            expected[task] = classifier.predict_proba(texts)
    assert {task: probabilities_NC.shape[1] for task, probabilities_NC in expected.items()} == {
        "topic": 7,
        "science": 2,
    }

    def check_together(*classifiers: Classifier) -> None:
        with ThreadPoolExecutor(len(classifiers)) as threads:
            futures = [
                (classifier, threads.submit(classifier.predict_proba, texts))
                for _ in range(2)
                for classifier in classifiers
            ]
        for classifier, future in futures:
            assert_probabilities_close(future.result(), expected[str(classifier.task)], INT8)

    with Classifier.load(bundle, task="topic") as first_classifier:
        with Classifier.load(second) as other:
            check_together(first_classifier, other)
        with pytest.raises(EngineError, match="closed"):
            other.classify(texts)
        check_together(first_classifier)
        with Classifier.load(second) as second_classifier:
            check_together(first_classifier, second_classifier)
            first_classifier.close()
            check_together(second_classifier)


def learn_science(bundle: Path, topics: dict[str, list[tuple[str, str]]]) -> None:
    """Replace the tasks of a bundle by one with two labels."""
    rows = [row for language in ("eng_Latn", "deu_Latn") for row in topics[language]]
    labels = ["science" if label == "science/technology" else "other" for label, _ in rows]
    for name in ("topic", "sentiment"):
        remove_task(Bundle.open(bundle), name)
    with Embedder.load(bundle) as embedder:
        Classifier(embedder).fit([text for _, text in rows], labels).save_task("science")
    assert set(Bundle.open(bundle).manifest.tasks) == {"science"}


def test_the_demo_runs_offline_and_without_torch(bundle: Path, tmp_path: Path) -> None:
    code = "import runpy, sys; sys.argv = ['demo.py', sys.argv[2]]; runpy.run_path(DEMO, run_name='__main__')"
    code = code.replace("DEMO", repr(str(ROOT / "benchmarks" / "demo.py")))
    customize = UNIMPORTABLE + OFFLINE
    child = run_python(code, "demo", str(bundle), customize=customize, folder=tmp_path, timeout=400)
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout.splitlines()[-1])
    assert report["languages"] >= 30
    assert report["scripts"] >= 8
    assert all(language in child.stdout for language in report["per_language"])
    assert 0.5 < report["accuracy"] <= 1
    assert report["texts_per_s"] > 0


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PARTS, tmp_path / "parts"))
    with (copy / "lora.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ModelError, match=r"lora\.safetensors"):
        join(copy, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
