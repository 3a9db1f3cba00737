"""Text for the reference checkpoint, from freely licensed parallel corpora."""

from __future__ import annotations

import re
from pathlib import Path

_REFUSED = re.compile(r"\b(NC|non-commercial|unclear|doubtful|none stated)\b", re.IGNORECASE)
"""Words in a licence column that keep a row out of weights that ship."""


def is_free(license_text: str | None) -> bool:
    """Whether a licence allows weights trained on the text to be shipped (no NC, nothing doubtful, not none)."""
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
