"""The baselines of an MT-LLM that share its LLM: `python benchmarks/translate_test.py TRANSLATOR TEACHER DATA CACHE`.

translate-test: TRANSLATOR (made by `export-translator`, greedy search) writes English, TEACHER, the LLM that was
fine-tuned on English labels, classifies it. LLM alone: TEACHER classifies the text as it stands. All languages with a
test split of SIB-200 (topic) and NusaX (sentiment). Translations are kept in the folder CACHE: a repeated run is
quick. Writes `benchmarks/results/translate_test.json` and `.md`, beside what `zero_shot.py` found for MT-LLM and
encoder alone. Needs the extra `[bench]`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from zero_shot import NAMES, RESULTS, summary

from mtllm_edge import __version__
from mtllm_edge.translator import Translator
from mtllm_edge_train.data import LabelledTexts
from mtllm_edge_train.evaluate import Evaluator, Scores
from mtllm_edge_train.reference.languages import CC100
from mtllm_edge_train.reference.tasks import ENGLISH, TASKS, all_texts, load_split, scores_by_language

SYSTEMS = {
    "mt_llm": "MT-LLM",
    "encoder_alone": "its encoder alone",
    "translate_test": "translate-test",
    "llm_alone": "LLM alone",
}


def main() -> None:
    if len(sys.argv) != 5:
        sys.exit("usage: python benchmarks/translate_test.py TRANSLATOR TEACHER DATA CACHE")
    translator_folder, teacher, data, cache = map(Path, sys.argv[1:])
    translator, evaluator = Translator.load(translator_folder), Evaluator(teacher)
    report: dict[str, object] = {
        "translator": f"{translator.manifest.name} ({translator.manifest.quantization}, greedy)",
        "created_with": f"mtllm-edge {__version__}",
    }
    zero_shot = json.loads((RESULTS / "zero_shot.json").read_text(encoding="utf-8"))["per_language"]
    per_language: dict[str, dict[str, dict[str, list[float]]]] = {}
    for task in TASKS:
        test = load_split(data, task, "test")
        texts = all_texts(test)
        path = cache / f"translations_{task}.json"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(translator.translate(texts), ensure_ascii=False), encoding="utf-8")
        translations = [text if text.strip() else "." for text in json.loads(path.read_text(encoding="utf-8"))]
        systems = {
            "translate_test": classified(evaluator, task, test, translations),
            "llm_alone": classified(evaluator, task, test, texts),
        }
        report[task] = {name: summary(scores) for name, scores in systems.items()}
        per_language[task] = {
            language: zero_shot[task][language]
            | {name: [round(s[language].accuracy, 4), round(s[language].macro_f1, 4)] for name, s in systems.items()}
            for language in test
        }
    full = {**report, "per_language": per_language}
    (RESULTS / "translate_test.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "translate_test.md").write_text(markdown(per_language), encoding="utf-8")
    print(json.dumps(report))


def classified(evaluator: Evaluator, task: str, test: dict[str, LabelledTexts], texts: list[str]) -> dict[str, Scores]:
    """Language -> scores of the labels found for texts that stand for the test's own."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = evaluator.predict(task, texts)
    return scores_by_language(test, found)


def markdown(per_language: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Means over groups of languages, then every language."""
    lines = ["# MT-LLM against translate-test", "", "Made by `benchmarks/translate_test.py`; English labels only."]
    for task, measure, figure in (("topic", "accuracy", 0), ("sentiment", "macro-F1", 1)):
        rows = per_language[task]
        others = [language for language in rows if language != ENGLISH]
        groups = {
            "English": [ENGLISH],
            "all others": others,
            "others that multilingual-e5-small was trained on": [name for name in others if name in CC100],
            "others": [name for name in others if name not in CC100],
        }
        lines += ["", f"## {NAMES[task]} test, {measure}", ""]
        lines += [f"| languages | {' | '.join(SYSTEMS.values())} |", "|---|" + "---|" * len(SYSTEMS)]
        for name, languages in groups.items():
            if languages:
                means = [sum(rows[code][system][figure] for code in languages) / len(languages) for system in SYSTEMS]
                lines.append(f"| {name} ({len(languages)}) | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
        lines += [
            f"| {code} | " + " | ".join(f"{rows[code][system][figure]:.3f}" for system in SYSTEMS) + " |"
            for code in others
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
