"""Match language codes and names to the language codes of an encoder.

Encoders use codes of three styles (NLLB's ``deu_Latn``, mBART's ``de_DE``, M2M100's ``de``). Users write these, BCP-47
(``zh-Hant``), ISO 639 (``ger``) or English names (``German``). All are parsed into language, script and territory;
CLDR supplies the parts that are left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

from langcodes import Language
from langcodes.data_dicts import MACROLANGUAGES
from langcodes.language_distance import tuple_distance_cached
from langcodes.tag_parser import LanguageTagError
from language_data import names

from mtllm_edge.errors import UsageError
from mtllm_edge.languages.flores200 import FLORES_200
from mtllm_edge.languages.warnings import UNDETERMINED, abbreviate

_CODE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")
_QUALIFIED_NAME = re.compile(r"([^(,]+)[(,]\s*([^()]+?)\s*\)?")
_M2M100_CODES = {"ns": "nso"}
"""Codes of M2M100 that no standard has."""
_TITLES = {"ajp": "South Levantine Arabic", "prs": "Dari", "twi": "Twi"}
"""Languages of FLORES-200 that CLDR merges with another one."""
_NOT_A_LANGUAGE = ("und", "mis", "mul", "zxx")
_MAX_NAME_LENGTH = 80
"""Characters."""
_CACHE_SIZE = 1000
"""Names whose result is cached; a server receives as many different ones as its clients think of."""
_SAME_SCRIPT = {"Hang": "Kore", "Hrkt": "Jpan", "Hira": "Jpan", "Kana": "Jpan", "Aran": "Arab"}

_SAME = 2
"""Largest distance of two codes for one language: a macrolanguage may stand for one of its members."""
_CLOSE = 10
"""Largest CLDR distance of a substitute. Larger ones reflect second languages, not similarity."""
_MAX_SUBSTITUTE = 11
"""Two languages of one macrolanguage are one farther apart than either is from the macrolanguage."""
_OTHER_SCRIPT = 20
"""Added to the distance where the scripts differ."""
_MAX_SUGGESTION = 30
"""Largest distance of the codes that an error message suggests."""


@dataclass(frozen=True, slots=True)
class Match:
    """A language code of an encoder."""

    code: str
    note: str | None = None
    """Warning that names the requested and the substitute language; None for the requested language itself."""


@dataclass(frozen=True, slots=True)
class _ParsedLanguage:
    """A language tag with the ISO 639-3 code of its language."""

    tag: Language
    alpha3: str
    """Before CLDR replaces it by the code of its macrolanguage."""

    @classmethod
    def parse(cls, name: str) -> _ParsedLanguage | None:
        """Parse a code of any style or an English name; return None for anything else."""
        if len(name) > _MAX_NAME_LENGTH:
            return None
        tag = fold(name).removesuffix("-xx")  # mBART's codes without a territory, such as en_XX
        if not _CODE.fullmatch(tag):
            return cls._from_english_name(name)
        head, dash, rest = tag.partition("-")
        head = _M2M100_CODES.get(head, head)
        try:
            parsed = Language.get(head + dash + rest)
            if parsed.language in (None, *_NOT_A_LANGUAGE) or parsed.extlangs or not parsed.is_valid():
                return cls._from_english_name(name)
            return cls(parsed, Language.get(head, normalize=False).to_alpha3())
        except (LanguageTagError, LookupError):
            return cls._from_english_name(name)

    @classmethod
    def _from_english_name(cls, name: str) -> _ParsedLanguage | None:
        """Parse an English name, such as ``German``, ``Chinese (Traditional)`` or ``Portuguese, Brazil``."""
        tag = _code_of_name("language", name)
        qualified = _QUALIFIED_NAME.fullmatch(name.strip())
        if tag is None and qualified:
            language = _code_of_name("language", qualified[1])
            script, territory = (_code_of_name(kind, qualified[2]) for kind in ("script", "territory"))
            if language and (script or territory):
                tag = f"{language}-{script or territory}"
        if tag is None:
            return None
        return cls(Language.get(tag), Language.get(tag, normalize=False).to_alpha3())

    @property
    def cldr_language(self) -> str:
        """CLDR's code of the language; a macrolanguage and its dominant member have the same one."""
        return self.tag.prefer_macrolanguage().language or UNDETERMINED

    @property
    def macrolanguage(self) -> str | None:
        """The macrolanguage of the language, if any."""
        return MACROLANGUAGES.get(self.alpha3) or MACROLANGUAGES.get(self.cldr_language)

    @property
    def script(self) -> str:
        """The script of the tag, or the likely one."""
        return _normalize_script(self.tag.maximize().script)

    @property
    def territory(self) -> str | None:
        """The territory of the tag, or the likely one."""
        return self.tag.maximize().territory

    @property
    def title(self) -> str:
        """English name without the territory."""
        language, script = self.tag.language or UNDETERMINED, self.tag.script
        likely_script = Language.make(language=language).maximize().script
        name = _TITLES.get(self.alpha3) or _english_name(language)
        if script is None or _normalize_script(script) == _normalize_script(likely_script):
            return name
        return f"{name} ({_english_name(script)})"

    @property
    def flores_code(self) -> str:
        """Language and script in the style of FLORES-200."""
        return f"{self.alpha3}_{self.script}"

    def distance(self, other: _ParsedLanguage) -> int:
        """Distance to another language, scripts and territories ignored; see the constants above."""
        if self.alpha3 == other.alpha3:
            return 0
        if self.cldr_language == other.cldr_language:
            return 1
        a, b = (self.cldr_language, "", ""), (other.cldr_language, "", "")
        distance: int = min(tuple_distance_cached(a, b), tuple_distance_cached(b, a))
        if other.macrolanguage == self.cldr_language:
            return min(distance, _SAME)
        if distance > _CLOSE and self.macrolanguage is not None:
            if self.macrolanguage == other.cldr_language:
                return _CLOSE
            if self.macrolanguage == other.macrolanguage:
                return _MAX_SUBSTITUTE
        return distance


class _Candidate(NamedTuple):
    """A supported code, ordered by how well it fits."""

    distance: int
    other_territory: bool
    position: int
    code: str
    language_distance: int
    """Without the script."""


class LanguageMatcher:
    """The language codes of an encoder, looked up by any common name of a language."""

    def __init__(self, codes: Sequence[str] = ()) -> None:
        """Take the encoder's codes; without any, those of FLORES-200, and codes of that style for other languages."""
        self._any_language = not codes
        self._codes = tuple(codes) or FLORES_200
        extra_codes = [UNDETERMINED] if self._any_language else []
        self._by_folded_code = {fold(code): code for code in (*self._codes, *extra_codes)}
        self._cached_lookup = lru_cache(_CACHE_SIZE)(self._lookup)

    def match(self, name: str) -> Match:
        """Return the code of a language, or of the closest language that the encoder supports.

        The name is a code of any common style or an English name, in upper or lower case.

        Raises:
            UsageError: The language does not exist, or the encoder supports no close one.
        """
        result = self._cached_lookup(name)
        if isinstance(result, str):
            raise UsageError(result)
        return result

    def titles(self) -> dict[str, str]:
        """Return the English name of each code."""
        return {code: title(code) for code in self._codes}

    def _lookup(self, name: str) -> Match | str:
        """Return the match, or an error message (a table may repeat an unknown name in each row)."""
        exact = self._by_folded_code.get(fold(name))
        if exact is not None:
            return Match(exact)
        language = _ParsedLanguage.parse(name)
        if language is None:
            short_name = name if len(name) <= _MAX_NAME_LENGTH else f"{name[:_MAX_NAME_LENGTH]}..."
            return f"unknown language {short_name!r}; {self._spelling_hint(short_name)}"
        candidates = sorted(self._candidates(language))
        substitutes = [candidate for candidate in candidates if candidate.language_distance <= _MAX_SUBSTITUTE]
        if substitutes and substitutes[0].distance <= _SAME:
            return Match(substitutes[0].code)
        if self._any_language:
            return Match(language.flores_code)
        requested = _title_and_code(language.title, name)
        unsupported = f"the encoder does not support {requested}"
        if substitutes:
            code = substitutes[0].code
            return Match(code, f"{unsupported}; {_title_and_code(title(code), code)} is used instead")
        suggestions = [_title_and_code(title(candidate.code), candidate.code) for candidate in candidates[:3]]
        if suggestions:
            return f"{unsupported}; the nearest codes are {', '.join(suggestions)}"
        supported = abbreviate(self._codes)
        return f"the encoder supports neither {requested} nor a similar language; supported codes are {supported}"

    def _candidates(self, language: _ParsedLanguage) -> Iterable[_Candidate]:
        """Yield the codes within the largest distance of a substitute or a suggestion."""
        for position, code in enumerate(self._codes):
            supported = _parse_cached(code)
            if supported is None:
                continue
            language_distance = distance = language.distance(supported)
            if language.script != supported.script:
                distance += _OTHER_SCRIPT
                if language_distance <= _SAME and language.tag.script is None and not self._any_language:
                    distance = _SAME  # no script was requested, and the encoder supports the language in this one
            if language_distance <= _MAX_SUBSTITUTE or distance <= _MAX_SUGGESTION:
                yield _Candidate(distance, language.territory != supported.territory, position, code, language_distance)

    def _spelling_hint(self, name: str) -> str:
        words = {fold(code): code for code in self._codes}
        words |= {fold(title): f"{title} ({code})" for code, title in self.titles().items()}
        similar = difflib.get_close_matches(fold(name), words, n=3, cutoff=0.6)
        if similar:
            return f"did you mean {' or '.join(words[word] for word in similar)}?"
        return f"supported codes are {abbreviate(self._codes)}"


def title(code: str) -> str:
    """Return the English name of a code, or the code itself where it has none."""
    language = _parse_cached(code)
    return code if language is None else language.title


def fold(name: str) -> str:
    """Normalize case, surrounding spaces and ``_`` or ``-`` in a code or name."""
    return name.strip().casefold().replace("_", "-")


@cache
def _parse_cached(code: str) -> _ParsedLanguage | None:
    return _ParsedLanguage.parse(code)


def _title_and_code(title: str, code: str) -> str:
    return title if fold(title) == fold(code) else f"{title} ({code})"


def _normalize_script(script: str | None) -> str:
    """Merge scripts that not all standards distinguish."""
    return "Zzzz" if script is None else _SAME_SCRIPT.get(script, script)


def _english_name(code: str) -> str:
    """Return the English name of a language or script code, or the code itself where it has none."""
    name: str = names.code_to_names(code).get("en", code)
    return name.removesuffix(" (individual language)")


def _code_of_name(kind: str, name: str) -> str | None:
    """Return the code of a language, script or territory by its exact English name."""
    trie, name = _english_trie(kind), names.normalize_name(name)
    code: str | None = names.get_trie_value(trie, name) if name in trie else None
    return code


@cache
def _english_trie(kind: str) -> Any:
    return names.load_trie(names.data_filename(f"trie/en/name_to_{kind}.marisa"))
