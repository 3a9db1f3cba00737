"""Measure the effect of quantization: `python benchmarks/quantization.py CHECKPOINT DATA`.

Exports the checkpoint in float32 and with the default quantization, and classifies the development sets of SIB-200 (205
languages) and NusaX (12) with both. Writes `benchmarks/results/quantization.json`, which is also the last line on
stdout: mean accuracy over languages, share of equal predictions, parity of both bundles with torch, and the largest
difference between batched and single texts.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from mtllm_edge_bench.scripts import require_extra

require_extra()
import msgspec
import numpy as np

from mtllm_edge import Classifier, Embedder
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_export.parity import load_sentences
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.recipes.reference.tasks import TASKS, load_split

RESULTS = Path(__file__).parent / "results"
QUANTIZATIONS = {"float32": ("float32", "f32"), "shipped": ("int8", "q8_0")}


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/quantization.py CHECKPOINT DATA")
    checkpoint, data = Path(sys.argv[1]), Path(sys.argv[2])
    dev_sets = {task: load_split(data, task, "dev") for task in TASKS}
    report: dict[str, object] = {}
    predictions: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, (encoder, llm) in QUANTIZATIONS.items():
            bundle = Path(scratch) / kind
            manifest = export_bundle(checkpoint, bundle, encoder_quantization=encoder, llm_quantization=llm)
            report[kind] = {
                "encoder": encoder,
                "llm": llm,
                "parity": msgspec.to_builtins(manifest.parity),
                "batched_minus_single": batched_minus_single(bundle),
            }
            predictions[kind] = {task: classify(bundle, task, dev) for task, dev in dev_sets.items()}
    for task, dev in dev_sets.items():
        exact, quantized = predictions["float32"][task], predictions["shipped"][task]
        report[task] = {
            "languages": len(dev),
            "texts": len(exact),
            "accuracy": {kind: round(mean_accuracy(dev, labels[task]), 4) for kind, labels in predictions.items()},
            "agreement": round(accuracy(exact, quantized), 4),
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quantization.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def batched_minus_single(bundle: Path) -> float:
    """Return the largest difference between the vectors of batched and single texts, relative to their length."""
    texts = [sentence.text for sentence in load_sentences()]
    with Embedder.load(bundle) as embedder:
        batched = embedder.embed(texts)
        single = np.concatenate([embedder.embed([text]) for text in texts])
    return float((np.linalg.norm(batched - single, axis=1) / np.linalg.norm(single, axis=1)).max())


def classify(bundle: Path, task: str, dev: dict[str, LabeledTexts]) -> list[str]:
    """Return the predictions of a bundle, language by language."""
    with Classifier.load(bundle, task=task) as classifier:
        predictions = classifier.classify([text for data in dev.values() for text in data.texts])
        return [prediction.label for prediction in predictions]


def mean_accuracy(dev: dict[str, LabeledTexts], predictions: list[str]) -> float:
    """Return the mean accuracy over languages."""
    rest = iter(predictions)
    return statistics.mean(accuracy(data.labels, [next(rest) for _ in data.labels]) for data in dev.values())


def accuracy(labels: list[str], predictions: list[str]) -> float:
    """Return the fraction of predictions that equal the labels."""
    return statistics.mean(map(str.__eq__, labels, predictions))


if __name__ == "__main__":
    main()
