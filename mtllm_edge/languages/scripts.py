"""Detect the script of a text by the Unicode names of its letters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

_MAX_CHARACTERS = 1000
"""Characters that are examined."""
_SCRIPT_NAMES = """
ARABIC=Arab ARMENIAN=Armn BENGALI=Beng BOPOMOFO=Bopo CANADIAN=Cans CHEROKEE=Cher CJK=Hani CYRILLIC=Cyrl
DEVANAGARI=Deva ETHIOPIC=Ethi GEORGIAN=Geor GREEK=Grek GUJARATI=Gujr GURMUKHI=Guru HANGUL=Kore HEBREW=Hebr
HIRAGANA=Jpan KANNADA=Knda KATAKANA=Jpan KHMER=Khmr LAO=Laoo LATIN=Latn MALAYALAM=Mlym MEETEI=Mtei MONGOLIAN=Mong
MYANMAR=Mymr NKO=Nkoo OL=Olck ORIYA=Orya SINHALA=Sinh SYRIAC=Syrc TAMIL=Taml TELUGU=Telu THAANA=Thaa THAI=Thai
TIBETAN=Tibt TIFINAGH=Tfng YI=Yiii
"""
_SCRIPTS = dict(pair.split("=") for pair in _SCRIPT_NAMES.split())
"""First word of a letter's Unicode name -> ISO 15924 code."""


def detect_script(text: str) -> str | None:
    """Return the script of most letters; None for a text without letters or with letters of other scripts only.

    Chinese is ``Hans`` or ``Hant``, by the characters that only one of the two has, or ``Hani`` if there are none of
    them. A text with some kana is Japanese, since Japanese nouns are written in Chinese characters.
    """
    counts = Counter(
        script for character in text[:_MAX_CHARACTERS] if (script := _script_of_letter(character)) is not None
    )
    if not counts:
        return None
    if "Jpan" in counts and counts["Hani"] + counts["Jpan"] >= max(counts.values()):
        return "Jpan"
    script = counts.most_common(1)[0][0]
    return _han_script(text[:_MAX_CHARACTERS]) if script == "Hani" else script


def _han_script(text: str) -> str:
    """Distinguish simplified and traditional Chinese: GB 2312 has the simplified characters, Big5 the traditional."""
    simplified = sum(_is_han_in(character, "gb2312") and not _is_han_in(character, "big5") for character in text)
    traditional = sum(_is_han_in(character, "big5") and not _is_han_in(character, "gb2312") for character in text)
    if simplified == traditional:
        return "Hani"
    return "Hans" if simplified > traditional else "Hant"


@lru_cache(maxsize=2**14)
def _is_han_in(character: str, encoding: str) -> bool:
    try:
        return len(character.encode(encoding)) > 1 and _script_of_letter(character) == "Hani"
    except UnicodeEncodeError:
        return False


@lru_cache(maxsize=2**14)
def _script_of_letter(character: str) -> str | None:
    if unicodedata.category(character)[0] not in "LM":
        return None
    return _SCRIPTS.get(unicodedata.name(character, "").partition(" ")[0])
