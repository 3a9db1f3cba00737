"""The Ray example on a Parquet file with two workers, compared with one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtllm_edge import Classifier
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close

pytest.importorskip("ray", reason="Ray is not installed (extra [ray])")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parents[2]
TEXTS = ["the team is good", "ein Hotel", "хороший матч", "  ", "الفندق جيد.", None, "a, b and c", "好"] * 80


def run(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the example in a child process with its own home folder."""
    return subprocess.run(
        [sys.executable, ROOT / "examples" / "ray_batch.py", *map(str, arguments)],
        env=os.environ
        | {
            "HOME": str(home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # with the default of 15, workers take minutes to start on busy cores
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_workers_return_the_results_of_one_process(tiny_bundle: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "texts.parquet", tmp_path / "out"
    numbers = list(range(len(TEXTS)))
    pq.write_table(pa.table({"number": numbers, "body": TEXTS, "label": ["gold"] * len(TEXTS)}), source)
    child = run(source, out, "--bundle", tiny_bundle, "--task", "topic", "--column", "body", home=tmp_path)
    assert child.returncode == 0, child.stderr
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))]).to_pylist()
    assert [row["number"] for row in rows] == numbers
    assert [row["body"] for row in rows] == TEXTS
    assert {row["label"] for row in rows} == {"gold"}
    texts = [text for text in TEXTS if text and text.strip()]
    with Classifier.load(tiny_bundle, task="topic", threads=1) as classifier:
        expected = iter(classifier.classify(texts))
    for text, row in zip(TEXTS, rows, strict=True):
        if not text or not text.strip():
            assert row["predicted_label"] is None
            assert row["confidence"] is None or row["confidence"] != row["confidence"]
            continue
        prediction = next(expected)
        assert row["predicted_label"] == prediction.label
        assert_probabilities_close(row["confidence"], prediction.confidence, LLAMA_CPP)


def test_wrong_options_are_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    child = run("nothing.parquet", tmp_path / "out", "--bundle", tiny_bundle, "--task", "weather", home=tmp_path)
    assert child.returncode == 2
    assert child.stderr.strip() == f"error: {tiny_bundle} has no task 'weather'; it has {task_names(tiny_bundle)}"


def task_names(bundle: Path) -> str:
    return ", ".join(json.loads((bundle / "bundle.json").read_bytes())["tasks"])
