"""The reference model's tasks, SIB-200 topics and NusaX sentiment, by language."""

from __future__ import annotations

from pathlib import Path

from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.evaluation.scoring import Scores, score

TASKS = {
    "topic": ("sib200.parquet", "category", {"train": "train", "dev": "dev", "test": "test"}),
    "sentiment": ("nusax_sentiment.parquet", "label", {"train": "train", "dev": "valid", "test": "test"}),
}
"""Task -> file, label column, names of the splits in the file."""
ENGLISH = "eng_Latn"


def load_split(data: Path, task: str, split: str) -> dict[str, LabeledTexts]:
    """Language -> its rows of a split, languages sorted.

    Args:
        data: The folder that holds `eval/`.
        task: One of `TASKS`.
        split: ``train``, ``dev`` or ``test``.
    """
    import pyarrow.parquet

    file, label_column, splits = TASKS[task]
    table = pyarrow.parquet.read_table(
        data / "eval" / file, columns=["lang", "text", label_column], filters=[("split", "=", splits[split])]
    )
    by_language: dict[str, LabeledTexts] = {}
    for row in table.to_pylist():
        labelled = by_language.setdefault(row["lang"], LabeledTexts([], []))
        labelled.texts.append(row["text"])
        labelled.labels.append(row[label_column])
    return dict(sorted(by_language.items()))


def all_texts(by_language: dict[str, LabeledTexts]) -> list[str]:
    """The texts of a split, language after language."""
    return [text for labelled in by_language.values() for text in labelled.texts]


def scores_by_language(by_language: dict[str, LabeledTexts], found: list[str]) -> dict[str, Scores]:
    """Language -> scores of the labels found for `all_texts`, in their order."""
    scores, start = {}, 0
    for language, labelled in by_language.items():
        scores[language] = score(labelled.labels, found[start : start + len(labelled.texts)])
        start += len(labelled.texts)
    return scores
