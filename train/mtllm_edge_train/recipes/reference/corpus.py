"""Text for the reference checkpoint, from freely licensed parallel corpora."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from mtllm_edge_train.multilingual.pairs import Pair

_REFUSED = re.compile(r"\b(NC|non-commercial|unclear|doubtful|none stated)\b", re.IGNORECASE)
"""Words in a license column that keep a row out of weights that ship."""


def is_free(license_text: str | None) -> bool:
    """Whether a license allows weights trained on the text to be shipped (no NC, nothing doubtful, not none)."""
    return bool(license_text) and not _REFUSED.search(license_text or "")


def english_sides(folder: Path, *, min_words: int = 8, max_words: int = 60) -> list[str]:
    """The different English sentences of all parquet files of a folder, in a fixed order.

    Args:
        folder: Files with the columns `english` and `license`.
        min_words: Shorter texts are left out: interface strings, headings.
        max_words: Longer texts are left out.
    """
    import pyarrow.parquet

    texts: dict[str, None] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pyarrow.parquet.read_table(path, columns=["english", "license"])
        for english, license_text in zip(table["english"].to_pylist(), table["license"].to_pylist(), strict=True):
            if english and is_free(license_text) and min_words <= len(english.split()) <= max_words:
                texts.setdefault(english)
    return list(texts)


def texts_by_language(folder: Path, *, at_most: int = 3000, at_least: int = 300) -> dict[str, list[str]]:
    """The first non-English texts of every language over all parquet files of a folder.

    Args:
        folder: Files with the columns `lang`, `text` and `license`.
        at_most: Texts per language.
        at_least: Languages with fewer texts are left out.
    """
    import pyarrow.parquet

    texts: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pyarrow.parquet.read_table(path, columns=["lang", "text", "license"])
        rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        for language, text, license_text in rows:
            kept = texts.setdefault(language, [])
            if text and is_free(license_text) and len(kept) < at_most:
                kept.append(text)
    return {language: kept for language, kept in sorted(texts.items()) if len(kept) >= at_least}


_SHARE = {"bible": 0.5, "apps_gettext": 0.1, "libreoffice_ui": 0.1, "mediawiki": 0.1, "gatitos_lexicon": 0.05}
"""File -> how much a row of it counts beside a sentence of prose: interface strings and single words say less."""


def translation_pairs(
    folder: Path,
    languages: Collection[str],
    *,
    known: Collection[str],
    temperature: float = 3.0,
    boost: float = 3.0,
    without: Collection[str] = (),
) -> list[Pair]:
    """Freely licensed sentence pairs, weighted for translation, and English paired with itself.

    A language whose rows count n in all is drawn in proportion to ``n ** (1 / temperature)``, times `boost` where the
    encoder did not know it; English makes a twentieth of all.

    Args:
        folder: Files with the columns `lang`, `text`, `english` and `license`.
        languages: Codes to keep.
        known: Codes that the encoder was trained on.
        without: Files to leave out, by name without suffix.
        temperature: 1 draws all rows alike, a large one all languages alike.
        boost: Factor on languages that are not in `known`.
    """
    import pyarrow.parquet

    rows: dict[str, list[Pair]] = defaultdict(list)
    for path in sorted(folder.glob("*.parquet")):
        if path.stem in without:
            continue
        share = _SHARE.get(path.stem, 1.0)
        table = pyarrow.parquet.read_table(path, columns=["lang", "text", "english", "license"])
        for language, text, english, license_text in zip(
            *(table[n].to_pylist() for n in table.column_names), strict=True
        ):
            if language in languages and text and english and is_free(license_text):
                rows[language].append(Pair(language, text, english, share))
    pairs: list[Pair] = []
    for language, found in sorted(rows.items()):
        count = sum(pair.weight for pair in found)
        factor = count ** (1 / temperature - 1) * (1.0 if language in known else boost)
        pairs += [pair._replace(weight=pair.weight * factor) for pair in found]
    english_texts = english_sides(folder)
    total = sum(pair.weight for pair in pairs)
    return pairs + [Pair("eng_Latn", text, text, total / 19 / len(english_texts)) for text in english_texts]
