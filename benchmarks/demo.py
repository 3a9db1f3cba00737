"""Classify the labeled demo sentences with a bundle: `python benchmarks/demo.py BUNDLE`.

Prints a table and, as its last line, a JSON document. Requires the runtime only.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

from rich.table import Table

from mtllm_edge import Classifier, MtllmError, console
from mtllm_edge.cli.progress import progress_bar

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
    """Classify the sentences of each language, print a table of accuracy and speed, and return the figures."""
    by_language: dict[str, list[dict[str, str]]] = defaultdict(list)
    with SENTENCES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_language[row["language"]].append(row)
    table = Table("language", "accuracy", "texts/s", title=f"{TASK}: English labels only, other languages zero-shot")
    accuracy: dict[str, float] = {}
    seconds = 0.0
    texts = sum(map(len, by_language.values()))
    with Classifier.load(bundle, task=TASK) as classifier, progress_bar(texts) as progress:
        classifier.classify([by_language["eng_Latn"][0]["text"]])  # the first call is the slowest
        for language, rows in by_language.items():
            start = time.perf_counter()
            predictions = classifier.classify([row["text"] for row in rows])
            elapsed = time.perf_counter() - start
            correct = sum(item.label == row["label"] for item, row in zip(predictions, rows, strict=True))
            accuracy[language] = correct / len(rows)
            seconds += elapsed
            table.add_row(language, f"{accuracy[language]:.2f}", f"{len(rows) / elapsed:.0f}")
            progress(len(rows))
    console.print_stdout(table)
    return {
        "bundle": str(bundle),
        "task": TASK,
        "languages": len(accuracy),
        "scripts": len({language.split("_")[1] for language in accuracy}),
        "accuracy": round(sum(accuracy.values()) / len(accuracy), 4),
        "per_language": accuracy,
        "texts_per_s": round(texts / seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
