"""The Spark example on a Parquet file with two tasks, compared with one process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtllm_edge import Classifier
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close

pytest.importorskip("pyspark", reason="Spark is not installed (pip install 'pyspark[sql]')")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parents[2]
TEXTS = ["the team is good", "ein Hotel", "хороший матч", " ", "الفندق جيد.", "a, b and c", "好"] * 9


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_two_tasks_return_the_results_of_one_process(tiny_bundle: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "texts.parquet", tmp_path / "out"
    pq.write_table(pa.table({"number": list(range(len(TEXTS))), "text": TEXTS}), source)
    command = [ROOT / "examples" / "spark_batch.py", source, out, "--bundle", tiny_bundle, "--task", "topic"]
    child = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ
        | {
            "HOME": str(tmp_path),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    rows = {row["number"]: row for row in pq.read_table(out).to_pylist()}
    numbers = [number for number, text in enumerate(TEXTS) if text.strip()]
    assert sorted(rows) == numbers
    with Classifier.load(tiny_bundle, task="topic", threads=1) as classifier:
        expected = classifier.classify([TEXTS[number] for number in numbers])
    for number, prediction in zip(numbers, expected, strict=True):
        assert rows[number]["text"] == TEXTS[number]
        assert rows[number]["label"] == prediction.label
        assert_probabilities_close(rows[number]["confidence"], prediction.confidence, LLAMA_CPP)
