"""The labelled sets of the benchmarks: SIB-200 topics and NusaX sentiment, by language."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet

from mtllm_edge_train.data import LabelledTexts

TASKS = {
    "topic": ("sib200.parquet", "category", {"train": "train", "dev": "dev", "test": "test"}),
    "sentiment": ("nusax_sentiment.parquet", "label", {"train": "train", "dev": "valid", "test": "test"}),
}
"""Task -> file, label column, names of the splits in the file."""


@dataclass(frozen=True)
class Benchmark:
    """One split of one task."""

    task: str
    by_language: dict[str, LabelledTexts]

    @property
    def texts(self) -> list[str]:
        """All texts, language after language."""
        return [text for labelled in self.by_language.values() for text in labelled.texts]


def load(data: Path, task: str, split: str) -> Benchmark:
    """Read a split; DATA is the folder that holds `eval/`."""
    file, label_column, splits = TASKS[task]
    table = pyarrow.parquet.read_table(
        data / "eval" / file, columns=["lang", "text", label_column], filters=[("split", "=", splits[split])]
    )
    by_language: dict[str, LabelledTexts] = {}
    for row in table.to_pylist():
        labelled = by_language.setdefault(row["lang"], LabelledTexts([], []))
        labelled.texts.append(row["text"])
        labelled.labels.append(row[label_column])
    return Benchmark(task, dict(sorted(by_language.items())))
