"""Identify the language of texts: py3langid for the language, Unicode for the script.

py3langid ships its model of 139 languages in the wheel; `benchmarks/language_identification.py` compares it with other
identifiers. It returns no scripts, and it lacks some languages that a script alone identifies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from langcodes import Language

from mtllm_edge.extras import require
from mtllm_edge.languages.scripts import detect_script

_SHARED_SCRIPTS = frozenset(
    ["Latn", "Cyrl", "Arab", "Deva", "Beng", "Hebr", "Ethi", "Mymr", "Tibt", "Hans", "Hant", "Hani"]
)
"""Scripts of several languages. Any other script identifies its language."""
_INTERCHANGEABLE_SCRIPTS = frozenset(["Latn", "Cyrl", "Arab"])
"""Scripts that many languages are written in beside their usual one."""
_HAN_SCRIPT = {"Hani": "Hans"}
_SCRIPT_LANGUAGES = {"Nkoo": "nqo"}
"""Overrides CLDR, which names a macrolanguage whose other members are written in Latin script."""
_NO_LANGUAGE = "zxx"


def identify(texts: Sequence[str]) -> list[str | None]:
    """Return the BCP-47 tag of each text's language and script, None without words; requires the extra [lang]."""
    require("lang", "py3langid")
    identifier = _identifier()
    tags = []
    for text in texts:
        script = detect_script(text)
        label = identifier.classify(text)[0] if script in _SHARED_SCRIPTS else None
        tags.append(None if script is None else language_tag(label, script))
    return tags


def language_tag(label: str | None, script: str) -> str | None:
    """Combine the label of an identifier, None or ``zxx`` for no language, with the result of `detect_script`."""
    script = _HAN_SCRIPT.get(script, script)
    likely = _likely_language(script)
    if script not in _SHARED_SCRIPTS:
        return likely
    if label in (None, _NO_LANGUAGE):
        return None
    usual = _likely_script(label)
    if usual == script or {usual, script} <= _INTERCHANGEABLE_SCRIPTS or {usual, script} == {"Hans", "Hant"}:
        return f"{label}-{script}"
    return likely


@cache
def _likely_script(label: str) -> str | None:
    return Language.get(label).maximize().script


@cache
def _likely_language(script: str) -> str:
    language = _SCRIPT_LANGUAGES.get(script) or Language.get(f"und-{script}").maximize().language
    return f"{language}-{script}"


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
