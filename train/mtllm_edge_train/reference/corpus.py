"""English text for general adaptation: the English sides of the freely licensed parallel corpora."""

from __future__ import annotations

from pathlib import Path

_REFUSED = ("NC", "non-commercial", "unclear", "doubtful", "none stated")
"""Words in a licence column that keep a row out of weights that ship."""


def is_free(license_text: str) -> bool:
    """Whether a licence allows weights trained on the text to be shipped (no NC, nothing doubtful)."""
    return not any(word in license_text for word in _REFUSED)


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
