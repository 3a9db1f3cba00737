"""Measure translations into English: `python benchmarks/translation_quality.py TRANSLATOR DATA [LANGUAGE ...]`.

chrF++ (sacrebleu) of greedy translations by language: on the development sentences of SIB-200, which are parallel by
`index_id`, and on up to 300 pairs per language of Tatoeba. Writes `benchmarks/results/chrf.json` and `.md`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from mtllm_edge_bench.scripts import require_extra

require_extra("bench", "pyarrow", "sacrebleu")
import pyarrow.parquet
import sacrebleu

from mtllm_edge import __version__
from mtllm_edge.translator import Translator
from mtllm_edge_train.evaluation.cc100 import CC100
from mtllm_edge_train.recipes.reference.tasks import ENGLISH

RESULTS = Path(__file__).parent / "results"
MAX_PAIRS = 300


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: python benchmarks/translation_quality.py TRANSLATOR DATA [LANGUAGE ...]")
    translator, data, languages = Translator.load(sys.argv[1]), Path(sys.argv[2]), set(sys.argv[3:])
    metric = sacrebleu.CHRF(word_order=2)
    scores: dict[str, dict[str, float]] = {}
    for name, pairs in (("sib200_dev", sib200(data)), ("tatoeba", tatoeba(data))):
        scores[name] = {}
        for language, rows in sorted(pairs.items()):
            if languages and language not in languages:
                continue
            translations = translator.translate([text for text, _ in rows])
            scores[name][language] = round(
                metric.corpus_score(translations, [[english for _, english in rows]]).score, 2
            )
    manifest = translator.manifest
    report: dict[str, Any] = {
        "translator": f"{manifest.name} ({manifest.quantization}, greedy)",
        "created_with": f"mtllm-edge {__version__}, sacrebleu {sacrebleu.__version__}",
        "signature": str(metric.get_signature()),
        "means": {name: round(sum(values.values()) / len(values), 2) for name, values in scores.items() if values},
    }
    dev = scores["sib200_dev"]
    groups = {
        "seen_by_e5": [value for code, value in dev.items() if code in CC100],
        "not_seen_by_e5": [value for code, value in dev.items() if code not in CC100],
    }
    report["means"] |= {f"sib200_dev_{name}": round(sum(v) / len(v), 2) for name, v in groups.items() if v}
    RESULTS.mkdir(exist_ok=True)
    full = json.dumps({**report, "per_language": scores}, indent=1)
    (RESULTS / "chrf.json").write_text(full + "\n", encoding="utf-8")
    lines = ["# chrF++ into English", "", f"Made by `benchmarks/translation_quality.py`: {report['translator']}.", ""]
    lines += ["| | language | chrF++ |", "|---|---|---|"]
    lines += [f"| {name} | **mean** | {mean:.2f} |" for name, mean in report["means"].items()]
    lines += [f"| {name} | {code} | {value:.2f} |" for name, values in scores.items() for code, value in values.items()]
    (RESULTS / "chrf.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(json.dumps(report))


def sib200(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Return language -> development sentences with their English translation."""
    columns = ["lang", "index_id", "text"]
    path, dev = data / "eval" / "sib200.parquet", [("split", "=", "dev")]
    rows = pyarrow.parquet.read_table(path, columns=columns, filters=dev).to_pylist()
    english = {row["index_id"]: row["text"] for row in rows if row["lang"] == ENGLISH}
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        if row["lang"] != ENGLISH and row["index_id"] in english:
            pairs[row["lang"]].append((row["text"], english[row["index_id"]]))
    return pairs


def tatoeba(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Return three-letter code -> the first pairs with English."""
    rows = pyarrow.parquet.read_table(data / "eval" / "tatoeba.parquet").to_pylist()
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        if len(pairs[row["lang"]]) < MAX_PAIRS and row["text"].strip():
            pairs[row["lang"]].append((row["text"], row["english"]))
    return pairs


if __name__ == "__main__":
    main()
