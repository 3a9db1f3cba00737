"""Groups of languages that a report averages over."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.sources import open_source
from mtllm_edge_train.evaluation.cc100 import CC100

BUILT_IN = {"e5": CC100}
"""Name -> codes of the languages that an encoder was trained on."""
BORDERS = (1_000, 10_000)
"""Numbers of parallel sentences that separate the groups by resources."""
_FLORES_CODE = re.compile(r"[a-z]{3}_([A-Z][a-z]{3})")
_MIN_SCRIPT_SIZE = 3
"""Scripts with fewer languages form one group."""


@dataclass(frozen=True)
class Group:
    """Languages that a report averages over."""

    kind: str
    """``language``, ``all``, ``encoder``, ``script`` or ``sentences``."""
    name: str
    languages: tuple[str, ...]


def language_groups(
    languages: Sequence[str],
    *,
    source: str,
    seen: Set[str] | None = None,
    sentences: Mapping[str, int] | None = None,
) -> list[Group]:
    """Group languages; empty groups are left out.

    The language of the training labels, `source`, is a group of its own and in no other. Only FLORES codes are grouped
    by script. The groups by languages that the encoder was trained on (`seen`), and by number of parallel sentences
    (`sentences`, 0 if absent), require these arguments.
    """
    others = [language for language in languages if language != source]
    groups = [Group("language", source, (source,))] if source in languages else []
    groups.append(Group("all", "all others" if groups else "all languages", tuple(others)))
    if seen is not None:
        groups += [
            Group("encoder", name, tuple(code for code in others if (code in seen) is is_seen))
            for name, is_seen in (("seen by the encoder", True), ("unseen by the encoder", False))
        ]
    groups += _script_groups(others)
    if sentences is not None:
        groups += [
            Group("sentences", name, tuple(code for code in others if _band(sentences.get(code, 0)) == band))
            for band, name in enumerate(_band_names())
        ]
    return [group for group in groups if group.languages]


def read_seen(source: str, languages: Sequence[str]) -> Set[str]:
    """Read the codes of the languages that the encoder was trained on.

    The source is ``e5`` for multilingual-e5 and other models of the languages of CC-100, or a text file of codes,
    separated by white space or commas. `languages` are those of the data.

    Raises:
        UsageError: The file is missing.
        DataError: The file is not UTF-8, or has none of the languages.
    """
    if source in BUILT_IN:
        return BUILT_IN[source]
    lines = open_source(source, suffix=".txt").strict_rows()
    codes = frozenset(code for _, row in lines for code in row["text"].replace(",", " ").split())
    if not codes & set(languages):
        raise DataError(f"{source} names none of the data's languages, such as {languages[0]}; write the data's codes")
    return codes


def read_sentences(path: Path) -> dict[str, int]:
    """Read the number of parallel sentences by language, from a .tsv file with the columns ``lang`` and ``sentences``.

    Raises:
        UsageError: The file or a column is missing.
        DataError: The file is not UTF-8, or a row has no whole number.
    """
    counts = {}
    for place, row in open_source(str(path), suffix=".tsv").strict_rows():
        if not {"lang", "sentences"} <= set(row):
            raise UsageError(f"{path} has the columns {[*row]}, expected lang and sentences, with a tab between them")
        if not row["sentences"].isdecimal():
            raise DataError(f"{place} has no whole number of sentences; correct it")
        counts[row["lang"]] = int(row["sentences"])
    return counts


def _script_groups(languages: Sequence[str]) -> list[Group]:
    """One group per script, the largest first, and one of the rare scripts; none if all languages share a script."""
    by_script: dict[str, list[str]] = defaultdict(list)
    for code in languages:
        if match := _FLORES_CODE.fullmatch(code):
            by_script[match[1]].append(code)
    common = sorted(
        (name for name in by_script if len(by_script[name]) >= _MIN_SCRIPT_SIZE), key=lambda s: -len(by_script[s])
    )
    rare = [code for name, codes in by_script.items() if name not in common for code in codes]
    groups = [Group("script", f"{name} script", tuple(by_script[name])) for name in common]
    groups += [Group("script", "other scripts", tuple(sorted(rare)))] if rare else []
    return groups if len(groups) > 1 else []


def _band(count: int) -> int:
    return sum(count >= border for border in BORDERS)


def _band_names() -> list[str]:
    low, high = BORDERS
    return [f"under {low:,} sentences", f"{low:,}–{high - 1:,} sentences", f"from {high:,} sentences"]
