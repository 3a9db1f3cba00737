"""What quantisation costs: `python benchmarks/quantization.py CHECKPOINT DATA`.

Exports the checkpoint in float32 and as it is shipped, and classifies the development sets of SIB-200 (all languages)
and NusaX with both. Writes `benchmarks/results/quantization.json`, which is also the last line of the output: accuracy
averaged over languages, share of texts on which the two agree, and the parity with torch of both bundles.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import msgspec
from labelled import TASKS, load

from mtllm_edge import Classifier
from mtllm_edge_export.assemble import export_bundle

RESULTS = Path(__file__).parent / "results"
KINDS = {"float32": ("float32", "f32"), "shipped": ("int8", "q8_0")}


def main() -> None:
    checkpoint, data = Path(sys.argv[1]), Path(sys.argv[2])
    report: dict[str, object] = {}
    answers: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, (encoder, llm) in KINDS.items():
            bundle = Path(scratch) / kind
            manifest = export_bundle(checkpoint, bundle, encoder_quantization=encoder, llm_quantization=llm)
            report[kind] = {"encoder": encoder, "llm": llm, "parity": msgspec.to_builtins(manifest.parity)}
            answers[kind] = {task: classify(bundle, task, data) for task in TASKS}
    for task in TASKS:
        dev = load(data, task, "dev")
        report[task] = {
            "languages": len(dev.by_language),
            "texts": len(dev.texts),
            "accuracy": {kind: round(mean_accuracy(data, task, found[task]), 4) for kind, found in answers.items()},
            "agreement": round(agreement(answers["float32"][task], answers["shipped"][task]), 4),
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quantization.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def classify(bundle: Path, task: str, data: Path) -> list[str]:
    """The bundle's answers to the development set."""
    with Classifier.load(bundle, task=task) as classifier:
        return [prediction.label for prediction in classifier.classify(load(data, task, "dev").texts)]


def mean_accuracy(data: Path, task: str, found: list[str]) -> float:
    """Accuracy averaged over languages."""
    rest = iter(found)
    shares = [
        agreement(labelled.labels, [next(rest) for _ in labelled.labels])
        for labelled in load(data, task, "dev").by_language.values()
    ]
    return sum(shares) / len(shares)


def agreement(first: list[str], second: list[str]) -> float:
    """Share of equal labels."""
    return sum(one == other for one, other in zip(first, second, strict=True)) / len(first)


if __name__ == "__main__":
    main()
