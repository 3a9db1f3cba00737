"""What quantisation costs: `python benchmarks/quantization.py CHECKPOINT DATA`.

Exports the checkpoint in float32 and as it is shipped, and classifies the development sets of SIB-200 (every twelfth of
its 205 languages, in alphabetical order) and of NusaX (all 12) with both. Writes
`benchmarks/results/quantization.json`, which is also the last line of output: mean accuracy over languages, share of
texts on which the two agree, the parity of both bundles with torch, and how far batches are from single texts. Needs
the extra `[bench]`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
from labelled import TASKS, Benchmark, load

from mtllm_edge import Classifier, Embedder
from mtllm_edge_export.assemble import export_bundle
from mtllm_edge_export.parity import load_sentences

EVERY = {"topic": 12, "sentiment": 1}
RESULTS = Path(__file__).parent / "results"
KINDS = {"float32": ("float32", "f32"), "shipped": ("int8", "q8_0")}


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/quantization.py CHECKPOINT DATA")
    checkpoint, data = Path(sys.argv[1]), Path(sys.argv[2])
    report: dict[str, object] = {}
    answers: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, (encoder, llm) in KINDS.items():
            bundle = Path(scratch) / kind
            manifest = export_bundle(checkpoint, bundle, encoder_quantization=encoder, llm_quantization=llm)
            report[kind] = {
                "encoder": encoder,
                "llm": llm,
                "parity": msgspec.to_builtins(manifest.parity),
                "batched_minus_single": batched_minus_single(bundle),
            }
            answers[kind] = {task: classify(bundle, task, data) for task in TASKS}
    for task in TASKS:
        dev = dev_set(data, task)
        report[task] = {
            "languages": len(dev.by_language),
            "texts": len(dev.texts),
            "accuracy": {kind: round(mean_accuracy(data, task, found[task]), 4) for kind, found in answers.items()},
            "agreement": round(agreement(answers["float32"][task], answers["shipped"][task]), 4),
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quantization.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def dev_set(data: Path, task: str) -> Benchmark:
    """The development set in the languages that are compared."""
    full = load(data, task, "dev")
    return Benchmark(task, dict(list(full.by_language.items())[:: EVERY[task]]))


def batched_minus_single(bundle: Path) -> float:
    """Largest difference between a batch's vectors and those of its single texts, as a share of the vector's length."""
    texts = [sentence.text for sentence in load_sentences()]
    with Embedder.load(bundle) as embedder:
        batched = embedder.embed(texts)
        single = np.concatenate([embedder.embed([text]) for text in texts])
    return float((np.linalg.norm(batched - single, axis=1) / np.linalg.norm(single, axis=1)).max())


def classify(bundle: Path, task: str, data: Path) -> list[str]:
    """The bundle's answers to the development set."""
    with Classifier.load(bundle, task=task) as classifier:
        return [prediction.label for prediction in classifier.classify(dev_set(data, task).texts)]


def mean_accuracy(data: Path, task: str, found: list[str]) -> float:
    """Accuracy averaged over languages."""
    rest = iter(found)
    shares = [
        agreement(labelled.labels, [next(rest) for _ in labelled.labels])
        for labelled in dev_set(data, task).by_language.values()
    ]
    return sum(shares) / len(shares)


def agreement(first: list[str], second: list[str]) -> float:
    """Share of equal labels."""
    return sum(one == other for one, other in zip(first, second, strict=True)) / len(first)


if __name__ == "__main__":
    main()
