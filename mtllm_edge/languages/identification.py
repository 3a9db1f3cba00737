"""The language of a text by its letters: py3langid for the language, Unicode for the script.

py3langid ships its model of 139 languages in the wheel; `benchmarks/language_identification.py` compares it with
others. It tells no scripts, and of the scripts that have a language to themselves it knows only some.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from langcodes import Language

from mtllm_edge.extras import require
from mtllm_edge.languages.scripts import detect_script

_SHARED = frozenset(["Latn", "Cyrl", "Arab", "Deva", "Beng", "Hebr", "Ethi", "Mymr", "Tibt", "Hans", "Hant", "Hani"])
"""Scripts of several languages; any other names its language by itself."""
_INTERCHANGED = frozenset(["Latn", "Cyrl", "Arab"])
"""Scripts in which many languages are written that have another one for the rule."""
_HAN = {"Hani": "Hans"}
_OF_SCRIPTS = {"Nkoo": "nqo"}
"""Where CLDR names a macrolanguage, whose other languages are written in Latin letters."""
_NOT_A_LANGUAGE = "zxx"


def identify(texts: Sequence[str]) -> list[str | None]:
    """The language of each text as BCP-47 writes it, with its script; None where there are no words.

    Raises:
        UsageError: The extra [lang] is not installed.
    """
    require("lang", "py3langid")
    identifier = _identifier()
    scripts = [detect_script(text) for text in texts]
    return [
        None if script is None else language_tag(identifier.classify(text)[0] if script in _SHARED else None, script)
        for text, script in zip(texts, scripts, strict=True)
    ]


def language_tag(label: str | None, script: str) -> str | None:
    """What an identifier says of a text, made to agree with the script of its letters.

    Args:
        label: The language, or None or ``zxx`` where it says nothing.
        script: As `detect_script` tells it.
    """
    script = _HAN.get(script, script)
    likely = _likely_language(script)
    if script not in _SHARED:
        return likely
    if label in (None, _NOT_A_LANGUAGE):
        return None
    usual = _likely_script(label)
    if usual == script or {usual, script} <= _INTERCHANGED or {usual, script} == {"Hans", "Hant"}:
        return f"{label}-{script}"
    return likely


@cache
def _likely_script(label: str) -> str | None:
    return Language.get(label).maximize().script


@cache
def _likely_language(script: str) -> str:
    language = _OF_SCRIPTS.get(script) or Language.get(f"und-{script}").maximize().language
    return f"{language}-{script}"


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
