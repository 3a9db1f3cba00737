"""Classify the shipped labelled sentences with a bundle: `python benchmarks/demo.py BUNDLE`.

Prints a table and, as its last line, one JSON document. Needs nothing but the runtime.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mtllm_edge import Classifier, MtllmError

SENTENCES = Path(__file__).parent / "demo_topics.csv"
TASK = "topic"


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python benchmarks/demo.py BUNDLE", file=sys.stderr)
        return 2
    try:
        report = run(Path(sys.argv[1]))
    except MtllmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report))
    return 0


def run(bundle: Path) -> dict[str, object]:
    by_language: dict[str, list[dict[str, str]]] = defaultdict(list)
    with SENTENCES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_language[row["language"]].append(row)
    table = Table("language", "accuracy", "texts/s", title=f"{TASK}: English labels only, other languages zero-shot")
    accuracy: dict[str, float] = {}
    seconds = 0.0
    with Classifier.load(bundle, task=TASK) as classifier:
        classifier.classify([by_language["eng_Latn"][0]["text"]])  # the first call is slower than all others
        for language, rows in by_language.items():
            started = time.perf_counter()
            predictions = classifier.classify([row["text"] for row in rows])
            took = time.perf_counter() - started
            hits = sum(found.label == row["label"] for found, row in zip(predictions, rows, strict=True))
            accuracy[language] = hits / len(rows)
            seconds += took
            table.add_row(language, f"{accuracy[language]:.2f}", f"{len(rows) / took:.0f}")
    Console().print(table)
    return {
        "bundle": str(bundle),
        "task": TASK,
        "languages": len(accuracy),
        "scripts": len({language.split("_")[1] for language in accuracy}),
        "accuracy": round(sum(accuracy.values()) / len(accuracy), 4),
        "per_language": accuracy,
        "texts_per_s": round(sum(map(len, by_language.values())) / seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
