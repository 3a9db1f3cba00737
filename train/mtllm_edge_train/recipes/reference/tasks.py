"""The tasks of the reference model: SIB-200 topics and NusaX sentiment, by language."""

from __future__ import annotations

from pathlib import Path

from mtllm_edge_train.data.labeled import LabeledTexts

TASKS = {
    "topic": ("sib200.parquet", "category", {"train": "train", "dev": "dev", "test": "test"}),
    "sentiment": ("nusax_sentiment.parquet", "label", {"train": "train", "dev": "valid", "test": "test"}),
}
"""Task -> file, label column, names of the splits in the file."""
ENGLISH = "eng_Latn"


def load_split(data: Path, task: str, split: str) -> dict[str, LabeledTexts]:
    """Read the split ``train``, ``dev`` or ``test`` of a task, grouped by language; languages are sorted."""
    import pyarrow.parquet

    file, label_column, splits = TASKS[task]
    table = pyarrow.parquet.read_table(
        data / "eval" / file, columns=["lang", "text", label_column], filters=[("split", "=", splits[split])]
    )
    by_language: dict[str, LabeledTexts] = {}
    for row in table.to_pylist():
        data_of_language = by_language.setdefault(row["lang"], LabeledTexts([], []))
        data_of_language.texts.append(row["text"])
        data_of_language.labels.append(row[label_column])
    return dict(sorted(by_language.items()))
