"""Zero-shot transfer of a bundle beside its encoder alone: `python benchmarks/zero_shot.py BUNDLE DATA`.

Both learned from the English training rows and nothing else. The baseline is the bundle's own encoder, mean-pooled,
with a logistic regression (C = 100) on vectors centred with the English training mean. All languages with a test split
of SIB-200 (topic) and NusaX (sentiment). Writes `benchmarks/results/zero_shot.json` and `.md`; the last line of output
is the JSON document without the single languages. Needs the extra `[bench]`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from mtllm_edge import Bundle, Classifier, Embedder, __version__
from mtllm_edge.encoders.base import Encoder
from mtllm_edge.heads import Head
from mtllm_edge.tokenizer import Encoded
from mtllm_edge_train.evaluate import Scores
from mtllm_edge_train.reference.tasks import ENGLISH, TASKS, all_texts, load_split, scores_by_language

RESULTS = Path(__file__).parent / "results"
NAMES = {"topic": "SIB-200", "sentiment": "NusaX"}


class Recorder:
    """An encoder that remembers the mean of every text's states: the stack's and the baseline's encoder run once."""

    def __init__(self, encoder: Encoder) -> None:
        """Stand before an encoder."""
        self._encoder = encoder
        self._means: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """As the encoder itself."""
        hidden = self._encoder.encode(batch)
        self._means |= {tuple(ids): states.mean(axis=0) for ids, states in zip(batch, hidden, strict=True)}
        return hidden

    def close(self) -> None:
        """As the encoder itself."""
        self._encoder.close()

    def vectors(self, encoded: Sequence[Encoded]) -> NDArray[np.float32]:
        """Mean over all tokens of texts that went through, (texts, d_model)."""
        return np.stack([self._means[tuple(text.ids)] for text in encoded])


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/zero_shot.py BUNDLE DATA")
    folder, data = Path(sys.argv[1]), Path(sys.argv[2])
    bundle = Bundle.open(folder)
    embedder = Embedder.load(bundle)
    embedder._encoder = recorder = Recorder(embedder._encoder)
    heads = {name: Head.load(bundle.path, part) for name, part in bundle.manifest.tasks.items()}
    report: dict[str, object] = {
        "bundle": bundle.manifest.name,
        "encoder": bundle.manifest.encoder.quantization,
        "llm": bundle.manifest.llm.quantization,
        "created_with": f"mtllm-edge {__version__}",
    }
    tasks: dict[str, dict[str, dict[str, Scores]]] = {}
    for task in TASKS:
        train, test = load_split(data, task, "train")[ENGLISH], load_split(data, task, "test")
        embedder.embed(train.texts)
        vectors = recorder.vectors(embedder.encode(train.texts))
        mean = vectors.mean(axis=0)
        baseline = LogisticRegression(C=100, max_iter=5000).fit(vectors - mean, train.labels)
        texts = all_texts(test)
        predictions = Classifier(embedder, heads, task).classify(texts)
        stacked = scores_by_language(test, [prediction.label for prediction in predictions])
        alone = scores_by_language(test, [*baseline.predict(recorder.vectors(embedder.encode(texts)) - mean)])
        tasks[task] = {"mt_llm": stacked, "encoder_alone": alone}
        report[task] = {
            "languages": len(stacked),
            "texts": len(texts),
            **{name: summary(scores) for name, scores in tasks[task].items()},
            "mt_llm_ahead_in": sum(stacked[name].accuracy > alone[name].accuracy for name in stacked),
        }
    RESULTS.mkdir(exist_ok=True)
    full = {**report, "per_language": {task: rows(systems) for task, systems in tasks.items()}}
    (RESULTS / "zero_shot.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "zero_shot.md").write_text(markdown(report, tasks), encoding="utf-8")
    print(json.dumps(report))


def summary(scores: dict[str, Scores]) -> dict[str, float]:
    """English, and the means over the other languages."""
    others = [value for language, value in scores.items() if language != ENGLISH]
    english = scores[ENGLISH]
    return {
        "english_accuracy": round(english.accuracy, 4),
        "english_macro_f1": round(english.macro_f1, 4),
        "others_accuracy": round(sum(value.accuracy for value in others) / len(others), 4),
        "others_macro_f1": round(sum(value.macro_f1 for value in others) / len(others), 4),
    }


def rows(systems: dict[str, dict[str, Scores]]) -> dict[str, dict[str, list[float]]]:
    """Language -> system -> accuracy and macro-F1."""
    return {
        language: {
            name: [round(scores[language].accuracy, 4), round(scores[language].macro_f1, 4)]
            for name, scores in systems.items()
        }
        for language in systems["mt_llm"]
    }


def markdown(report: dict[str, object], tasks: dict[str, dict[str, dict[str, Scores]]]) -> str:
    """The table for people."""
    lines = [
        f"# Zero-shot transfer of {report['bundle']}",
        "",
        "Made by `benchmarks/zero_shot.py`. Both systems learned from the English training rows alone. Encoder alone:",
        "the bundle's own encoder, mean-pooled, logistic regression (C = 100, centred).",
        f"Encoder {report['encoder']}, LLM {report['llm']}.",
    ]
    for task, systems in tasks.items():
        lines += ["", f"## {NAMES[task]} test ({task})", ""]
        lines += [
            "| language | MT-LLM accuracy | encoder alone | MT-LLM macro-F1 | encoder alone |",
            "|---|---|---|---|---|",
        ]
        stacked, alone = systems["mt_llm"], systems["encoder_alone"]
        mean = {name: summary(scores) for name, scores in systems.items()}
        lines.append(
            "| **mean without English** "
            + "".join(
                f"| {mean['mt_llm'][key]:.3f} | {mean['encoder_alone'][key]:.3f} "
                for key in ("others_accuracy", "others_macro_f1")
            )
            + "|"
        )
        for language in sorted(stacked, key=lambda name: (name != ENGLISH, name)):
            mine, theirs = stacked[language], alone[language]
            lines.append(
                f"| {language} | {mine.accuracy:.3f} | {theirs.accuracy:.3f} "
                f"| {mine.macro_f1:.3f} | {theirs.macro_f1:.3f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
