"""The script that a text is written in, by the names of its letters in Unicode."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

_ENOUGH = 1000
"""Characters that are looked at."""
_SCRIPTS = {
    "ARABIC": "Arab",
    "ARMENIAN": "Armn",
    "BENGALI": "Beng",
    "BOPOMOFO": "Bopo",
    "CANADIAN": "Cans",
    "CHEROKEE": "Cher",
    "CJK": "Hani",
    "CYRILLIC": "Cyrl",
    "DEVANAGARI": "Deva",
    "ETHIOPIC": "Ethi",
    "GEORGIAN": "Geor",
    "GREEK": "Grek",
    "GUJARATI": "Gujr",
    "GURMUKHI": "Guru",
    "HANGUL": "Kore",
    "HEBREW": "Hebr",
    "HIRAGANA": "Jpan",
    "KANNADA": "Knda",
    "KATAKANA": "Jpan",
    "KHMER": "Khmr",
    "LAO": "Laoo",
    "LATIN": "Latn",
    "MALAYALAM": "Mlym",
    "MEETEI": "Mtei",
    "MONGOLIAN": "Mong",
    "MYANMAR": "Mymr",
    "NKO": "Nkoo",
    "OL": "Olck",
    "ORIYA": "Orya",
    "SINHALA": "Sinh",
    "SYRIAC": "Syrc",
    "TAMIL": "Taml",
    "TELUGU": "Telu",
    "THAANA": "Thaa",
    "THAI": "Thai",
    "TIBETAN": "Tibt",
    "TIFINAGH": "Tfng",
    "YI": "Yiii",
}
"""First word of a letter's name in Unicode -> ISO 15924."""


def detect_script(text: str) -> str | None:
    """The script that most letters of a text belong to; None where there are no letters, or of no known script.

    Chinese is ``Hans`` or ``Hant``, by the characters that only one of the two has, or ``Hani`` where it has none of
    them; a text with some kana is Japanese, whose nouns are written in the same characters.
    """
    counts = Counter(script for sign in text[:_ENOUGH] if (script := _script(sign)) is not None)
    if not counts:
        return None
    if "Jpan" in counts and counts["Hani"] + counts["Jpan"] >= max(counts.values()):
        return "Jpan"
    script = counts.most_common(1)[0][0]
    return _han(text[:_ENOUGH]) if script == "Hani" else script


def _han(text: str) -> str:
    """Which characters a Chinese text is written with: East Asia's old standards hold those of one kind each."""
    simplified = sum(_has(sign, "gb2312") and not _has(sign, "big5") for sign in text)
    traditional = sum(_has(sign, "big5") and not _has(sign, "gb2312") for sign in text)
    if simplified == traditional:
        return "Hani"
    return "Hans" if simplified > traditional else "Hant"


@lru_cache(maxsize=2**14)
def _has(sign: str, encoding: str) -> bool:
    try:
        return len(sign.encode(encoding)) > 1 and _script(sign) == "Hani"
    except UnicodeEncodeError:
        return False


@lru_cache(maxsize=2**14)
def _script(sign: str) -> str | None:
    if unicodedata.category(sign)[0] not in "LM":
        return None
    return _SCRIPTS.get(unicodedata.name(sign, "").partition(" ")[0])
