"""Texts and sentence pairs of the reference model, from freely licensed parallel corpora."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mtllm_edge_train.multilingual.pairs import SentencePair

_NOT_FREE = re.compile(r"\b(NC|non-commercial|unclear|doubtful|none stated)\b", re.IGNORECASE)
"""Words in a license column that exclude a row."""


def is_free(license_text: str | None) -> bool:
    """Return whether a license allows shipping weights trained on the text: a known one, without NC."""
    return bool(license_text) and not _NOT_FREE.search(license_text or "")


def _rows(path: Path, *columns: str) -> Iterator[list[Any]]:
    """The cells of the rows of a parquet file with a free license."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=[*columns, "license"])
    for *cells, license_text in zip(*(table[name].to_pylist() for name in (*columns, "license")), strict=True):
        if is_free(license_text):
            yield cells


def english_sides(folder: Path, *, min_words: int = 8, max_words: int = 60) -> list[str]:
    """Return the distinct English sentences of all parquet files of a folder, in a fixed order.

    Shorter texts, such as interface strings and headings, and longer texts are excluded.
    """
    texts: dict[str, None] = {}
    for path in sorted(folder.glob("*.parquet")):
        for (english,) in _rows(path, "english"):
            if english and min_words <= len(english.split()) <= max_words:
                texts.setdefault(english)
    return list(texts)


def texts_by_language(folder: Path, *, at_most: int = 3000, at_least: int = 300) -> dict[str, list[str]]:
    """Return the first non-English texts of each language with at least `at_least` in a folder's parquet files."""
    by_language: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.glob("*.parquet")):
        for language, text in _rows(path, "lang", "text"):
            if text and len(by_language[language]) < at_most:
                by_language[language].append(text)
    return {language: texts for language, texts in sorted(by_language.items()) if len(texts) >= at_least}


_TEMPERATURE = 3.0
"""Temperature of language sampling: 1 draws all rows alike, a large one all languages alike."""
_BOOST = 3.0
"""Factor on languages that the encoder was not trained on."""
_FILE_WEIGHTS = {"bible": 0.5, "apps_gettext": 0.1, "libreoffice_ui": 0.1, "mediawiki": 0.1, "gatitos_lexicon": 0.05}
"""File -> weight of a row, relative to a sentence of prose: interface strings and single words are less useful."""


def translation_pairs(
    folder: Path,
    languages: Collection[str],
    *,
    known: Collection[str],
    without: Collection[str] = (),
) -> list[SentencePair]:
    """Return freely licensed sentence pairs, weighted for translation, and English paired with itself.

    A language whose rows weigh n in total is drawn in proportion to the cube root of n, three times as often if the
    encoder does not know it. English is a twentieth of the total. The files with names in `without` are excluded.
    """
    by_language: dict[str, list[SentencePair]] = defaultdict(list)
    for path in sorted(folder.glob("*.parquet")):
        if path.stem not in without:
            weight = _FILE_WEIGHTS.get(path.stem, 1.0)
            for language, text, english in _rows(path, "lang", "text", "english"):
                if language in languages and text and english:
                    by_language[language].append(SentencePair(language, text, english, weight))
    pairs: list[SentencePair] = []
    for language, rows in sorted(by_language.items()):
        count = sum(pair.weight for pair in rows)
        factor = count ** (1 / _TEMPERATURE - 1) * (1.0 if language in known else _BOOST)
        pairs += [pair._replace(weight=pair.weight * factor) for pair in rows]
    english_texts = english_sides(folder)
    total = sum(pair.weight for pair in pairs)
    return pairs + [SentencePair("eng_Latn", text, text, total / 19 / len(english_texts)) for text in english_texts]
