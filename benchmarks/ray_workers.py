"""Measure several Ray workers on one machine: `python benchmarks/ray_workers.py BUNDLE --task topic -o RESULT.json`.

`examples/ray_batch.py` labels the demo's sentences, repeated, in workers of one thread each; one process labels the
same sentences with as many threads. Compared are labels, texts per second, CPU time (less affected by other programs),
and memory: how much of the bundle's files the workers share (Linux, `/proc/PID/smaps`). The last line on stdout is the
result as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mtllm_edge_bench.scripts import DEMO_TOPICS, require_extra

require_extra("ray", "ray", "pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

from mtllm_edge import Classifier
from mtllm_edge.backends.cpu import read_cpu

_COSTS = ("texts_per_s", "cpu_ms_per_text", "memory")
_FIELDS = ("Rss", "Pss", "Shared_Clean", "Private_Clean", "Private_Dirty")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--task", default="topic")
    parser.add_argument("--texts", type=int, default=960)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "texts.parquet")
        write_texts(source, arguments.texts)
        alone = [run(arguments, source, "alone", threads) for threads in dict.fromkeys((1, arguments.workers))]
        workers = run(arguments, source, "workers", 1)
    report = {
        "cpu": read_cpu().model,
        "texts": arguments.texts,
        "alone": [{key: each[key] for key in ("threads", *_COSTS)} | compare(each, workers) for each in alone],
        "workers": {key: workers[key] for key in ("workers", "whole_seconds", *_COSTS)},
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return 0


def write_texts(path: Path, count: int) -> None:
    """Write demo sentences as Parquet, numbered if repeated: equal texts would be classified only once."""
    with DEMO_TOPICS.open(encoding="utf-8", newline="") as file:
        sentences = [row["text"] for row in csv.DictReader(file)]
    sentences = sentences[:: max(1, len(sentences) // count)]
    texts = [f"{sentences[place % len(sentences)]} {place // len(sentences) or ''}".strip() for place in range(count)]
    pq.write_table(pa.table({"text": texts}), path)


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Compare the predictions of two runs."""
    labels = [label == other_label for label, other_label in zip(one["labels"], other["labels"], strict=True)]
    distances = [abs(left - right) for left, right in zip(one["confidences"], other["confidences"], strict=True)]
    return {"labels_as_the_workers": sum(labels) / len(labels), "largest_difference_of_confidence": max(distances)}


def run(arguments: argparse.Namespace, source: Path, way: str, threads: int) -> dict[str, Any]:
    """Run a function of this module in its own process, so that memory is separate."""
    call = {"source": str(source), "bundle": str(arguments.bundle.resolve()), "task": arguments.task}
    call |= {"threads": threads, "workers": arguments.workers}
    code = f"import json, sys; from ray_workers import {way}; print(json.dumps({way}(**json.loads(sys.argv[1]))))"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*folders, *filter(None, sys.path)])}
    environment["RAY_worker_niceness"] = "0"  # otherwise its workers run with low priority
    child = subprocess.run(
        [sys.executable, "-c", code, json.dumps(call)], env=environment, stdout=subprocess.PIPE, check=True
    )
    result: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    print(f"{way}, {threads} threads: {result['texts_per_s']:.1f} texts/s", file=sys.stderr)
    return result


def alone(source: str, bundle: str, task: str, threads: int, workers: int) -> dict[str, Any]:
    """Classify in this process."""
    texts = pq.read_table(source)["text"].to_pylist()
    with Classifier.load(bundle, task=task, threads=threads) as classifier:
        classifier.classify(texts[:8])  # warm-up
        began, computed = time.perf_counter(), time.process_time()
        predictions = classifier.classify(texts)
        seconds, computed = time.perf_counter() - began, time.process_time() - computed
        memory = memory_of(os.getpid(), bundle)
    return {
        "threads": threads,
        "texts_per_s": len(texts) / seconds,
        "cpu_ms_per_text": computed / len(texts) * 1e3,
        "memory": memory,
        "labels": [each.label for each in predictions],
        "confidences": [each.confidence for each in predictions],
    }


def workers(source: str, bundle: str, task: str, threads: int, workers: int) -> dict[str, Any]:
    """Run the example with workers that measure their time and memory."""
    import ray

    from examples import ray_batch

    class MeasuredClassifier(ray_batch.BatchClassifier):
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            began, computed = time.time(), time.process_time()
            labelled = super().__call__(batch)
            computed = (time.process_time() - computed) / len(batch["text"])
            usage = {"pid": os.getpid(), "began": began, "ended": time.time(), "computed": computed}
            usage["memory"] = json.dumps(memory_of(os.getpid(), bundle))
            return labelled | {name: [value] * len(batch["text"]) for name, value in usage.items()}

    texts = pq.read_metadata(source).num_rows
    ray_batch.BATCH_SIZE = -(-texts // (2 * workers))  # so that every worker gets batches
    ray.init("local", num_cpus=workers * threads + ray_batch.READER_CPUS, include_dashboard=False, log_to_driver=False)
    began = time.perf_counter()
    dataset = ray.data.read_parquet(source)
    dataset = ray_batch.label(
        dataset, bundle, task=task, workers=workers, threads=threads, classifier_class=MeasuredClassifier
    )
    rows = dataset.take_all()
    whole = time.perf_counter() - began
    ray.shutdown()
    last = {row["pid"]: json.loads(row["memory"]) for row in sorted(rows, key=lambda row: row["ended"])}
    return {
        "workers": workers,
        "cpu_ms_per_text": sum(row["computed"] for row in rows) / len(rows) * 1e3,
        "texts_per_s": len(rows) / (max(row["ended"] for row in rows) - min(row["began"] for row in rows)),
        "whole_seconds": whole,
        "memory": list(last.values()),
        "labels": [row["label"] for row in rows],
        "confidences": [row["confidence"] for row in rows],
    }


def memory_of(pid: int, bundle: str) -> dict[str, dict[str, float]]:
    """Return the memory of a process in MB: of each mapped file of the bundle, and in total."""
    usage: dict[str, dict[str, float]] = {}
    name = "other"
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
            name = Path(path).name if path.startswith(bundle) else "other"
            continue
        field, value = line.split(":", 1)
        if field in _FIELDS:
            for part in (name, "all"):
                part_usage = usage.setdefault(part, dict.fromkeys(_FIELDS, 0.0))
                part_usage[field] += int(value.split()[0]) / 1024
    return {part: {field: round(size, 1) for field, size in fields.items()} for part, fields in usage.items()}


if __name__ == "__main__":
    sys.exit(main())
