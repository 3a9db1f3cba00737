"""From what people call a language to the code that a bundle knows, or to that of the nearest language that it knows.

Encoders have codes of three styles (NLLB's ``deu_Latn``, mBART's ``de_DE``, M2M100's ``de``), and people write these,
BCP-47 (``zh-Hant``), ISO 639 (``ger``) or names (``German``). All of them are compared as language, script and
territory, with what CLDR says of the parts that are left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from langcodes import Language
from langcodes.data_dicts import MACROLANGUAGES
from langcodes.language_distance import tuple_distance_cached
from langcodes.tag_parser import LanguageTagError
from language_data import names

from mtllm_edge.errors import UsageError
from mtllm_edge.languages.flores200 import FLORES_200
from mtllm_edge.languages.related import similarity_rank
from mtllm_edge.languages.warnings import UNDETERMINED, abbreviate

_CODE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")
_CLARIFIED = re.compile(r"([^(,]+)[(,]\s*([^()]+?)\s*\)?")
_OWN_CODES = {"ns": "nso"}
"""M2M100's, where it is nobody else's."""
_TITLES = {"ajp": "South Levantine Arabic", "prs": "Dari", "twi": "Twi"}
"""Of languages that CLDR has under another code, and FLORES-200 beside it."""
_NO_LANGUAGES = ("und", "mis", "mul", "zxx")
_LONGEST_NAME = 80
"""Characters; what is longer is no name."""
_MOST_KEPT = 1000
"""Names that are remembered, of either kind: a server is told as many as its clients think of."""
_SAME_SCRIPT = {"Hang": "Kore", "Hrkt": "Jpan", "Hira": "Jpan", "Kana": "Jpan", "Aran": "Arab"}

_SAME = 2
"""Distance up to which two codes mean one language: a macrolanguage may be called by the one of it that is known."""
_CLOSE = 10
"""Distance of CLDR's up to which languages are alike; beyond, it tells of schooling and not of likeness."""
_KIN = 12
_OTHER_SCRIPT = 20
_FARTHEST = 31
"""A close language in its script, or the same or one of its dialects in another; kin in another script is too far."""


@dataclass(frozen=True, slots=True)
class Match:
    """A language of a bundle."""

    code: str
    """As the bundle writes it."""
    note: str | None = None
    """What a person must be told: which language is used instead of which; None where it is the one that was meant."""


@dataclass(frozen=True, slots=True)
class _Meant:
    """A language as it was named."""

    tag: Language
    alpha3: str
    """Its own ISO 639-3 code, before CLDR puts it under another."""

    @classmethod
    def parse(cls, name: str) -> _Meant | None:
        """Read a code of any style, or an English name; None where it is neither."""
        if len(name) > _LONGEST_NAME:
            return None
        tag = fold(name).removesuffix("-xx")  # mBART's, where no country is
        if not _CODE.fullmatch(tag):
            return cls.named(name)
        head, dash, rest = tag.partition("-")
        head = _OWN_CODES.get(head, head)
        try:
            found = Language.get(head + dash + rest)
            if found.language is None or found.language in _NO_LANGUAGES or found.extlangs or not found.is_valid():
                return cls.named(name)
            return cls(found, Language.get(head, normalize=False).to_alpha3())
        except (LanguageTagError, LookupError):
            return cls.named(name)

    @classmethod
    def named(cls, name: str) -> _Meant | None:
        """Read an English name, such as ``German``, ``Chinese (Traditional)`` or ``Portuguese, Brazil``."""
        tag = _by_name("language", name)
        clarified = _CLARIFIED.fullmatch(name.strip())
        if tag is None and clarified:
            language = _by_name("language", clarified[1])
            script, territory = (_by_name(kind, clarified[2]) for kind in ("script", "territory"))
            if language and (script or territory):
                tag = f"{language}-{script or territory}"
        if tag is None:
            return None
        return cls(Language.get(tag), Language.get(tag, normalize=False).to_alpha3())

    @property
    def language(self) -> str:
        """CLDR's code of it, which for the foremost language of a macrolanguage is that one's."""
        return self.tag.prefer_macrolanguage().language or "und"

    @property
    def macrolanguage(self) -> str | None:
        """The one that it is counted among."""
        return MACROLANGUAGES.get(self.alpha3) or MACROLANGUAGES.get(self.language)

    @property
    def script(self) -> str:
        """The script that was named, or the likely one."""
        return _same(self.tag.maximize().script)

    @property
    def territory(self) -> str | None:
        """The territory that was named, or the likely one."""
        return self.tag.maximize().territory

    @property
    def title(self) -> str:
        """Its English name, without the territory."""
        language, script = self.tag.language or "und", self.tag.script
        usual = Language.make(language=language).maximize().script
        name = _TITLES.get(self.alpha3) or _english_name(language)
        return name if script is None or _same(script) == _same(usual) else f"{name} ({_english_name(script)})"

    def code(self) -> str:
        """Its language and script as FLORES-200 writes them."""
        return f"{self.alpha3}_{self.script}"

    def distance(self, other: _Meant) -> int | None:
        """How far another language is from this one, scripts and territories aside; None where they are strangers."""
        if self.alpha3 == other.alpha3:
            return 0
        if self.language == other.language:
            return 1
        one, two = (self.language, "", ""), (other.language, "", "")
        near = min(tuple_distance_cached(one, two), tuple_distance_cached(two, one))
        mine, its = self.macrolanguage, other.macrolanguage
        if its == self.language:
            return min(near, _SAME)
        if near <= _CLOSE:
            return near
        if mine is not None and mine in (its, other.language):
            return _CLOSE + (mine != other.language)  # better the macrolanguage than another of its languages
        rank = similarity_rank(self.language, other.language)
        return None if rank is None else _KIN + rank


class LanguageMatcher:
    """The codes that a bundle knows, found by any usual name of a language."""

    def __init__(self, codes: Sequence[str] = ()) -> None:
        """Take the codes; none stand for an encoder that reads any language and needs no code.

        Such an encoder gets FLORES-200's codes, and for further languages codes of the same form.
        """
        self._open = not codes
        self._codes = tuple(codes) or FLORES_200
        self._folded = {fold(code): code for code in (*self._codes, *([UNDETERMINED] if self._open else []))}
        self._found: dict[str, Match] = {}
        self._refused: dict[str, str] = {}
        """Names that were of no use, and what was said of them: a file may have one in each of its rows."""

    def match(self, name: str) -> Match:
        """The code of a language, or of the nearest one that the encoder knows.

        Args:
            name: A code of any usual form, or an English name; upper and lower case are one.

        Raises:
            UsageError: There is no such language, or the encoder knows none that is near to it.
        """
        if name in self._refused:
            raise UsageError(self._refused[name])
        if name in self._found:
            return self._found[name]
        try:
            match = self._match(name)
        except UsageError as error:
            if len(self._refused) < _MOST_KEPT:
                self._refused[name] = str(error)
            raise
        if len(self._found) < _MOST_KEPT:
            self._found[name] = match
        return match

    def titles(self) -> dict[str, str]:
        """Every code with its language's English name."""
        return {code: title(code) for code in self._codes}

    def _match(self, name: str) -> Match:
        exact = self._folded.get(fold(name))
        if exact is not None:
            return Match(exact)
        meant = _Meant.parse(name)
        if meant is None:
            shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
            raise UsageError(f"unknown language {shown!r}; {self._hint(shown)}")
        nearest = min(self._distances(meant), default=None)
        if nearest is not None and nearest[0] <= _SAME:
            return Match(self._codes[nearest[2]])
        if self._open:
            return Match(meant.code())
        if nearest is None:
            raise UsageError(
                f"the encoder does not know {_both(meant.title, name)}, nor a language near to it; "
                f"known are {abbreviate(self._codes)}"
            )
        code = self._codes[nearest[2]]
        return Match(code, f"the encoder does not know {_both(meant.title, name)}; {_both(title(code), code)} is used")

    def _distances(self, meant: _Meant) -> Iterable[tuple[int, int, int]]:
        """Distance, whether the territory is another, and place of the codes that are not too far."""
        for place, code in enumerate(self._codes):
            known = _known(code)
            distance = None if known is None else meant.distance(known)
            if known is None or distance is None:
                continue
            if meant.script != known.script:
                distance += _OTHER_SCRIPT
                if distance <= _OTHER_SCRIPT + _SAME and meant.tag.script is None and not self._open:
                    distance = _SAME  # the language was named without a script, and the encoder knows it in this one
            if distance <= _FARTHEST:
                yield distance, int(meant.territory != known.territory), place

    def _hint(self, wrong: str) -> str:
        words = {fold(code): code for code in self._codes}
        words |= {fold(name): f"{name} ({code})" for code, name in self.titles().items()}
        near = difflib.get_close_matches(fold(wrong), words, n=3, cutoff=0.6)
        if near:
            return f"did you mean {' or '.join(words[word] for word in near)}?"
        return f"known are {abbreviate(self._codes)}"


def title(code: str) -> str:
    """The English name of a bundle's code; the code itself where there is none."""
    known = _known(code)
    return code if known is None else known.title


def fold(name: str) -> str:
    """A code or name without what people write in different ways: case, and ``_`` for ``-``."""
    return name.strip().casefold().replace("_", "-")


@cache
def _known(code: str) -> _Meant | None:
    return _Meant.parse(code)


def _both(title: str, code: str) -> str:
    return title if fold(title) == fold(code) else f"{title} ({code})"


def _same(script: str | None) -> str:
    """One name for scripts that are told apart only by some."""
    return "Zzzz" if script is None else _SAME_SCRIPT.get(script, script)


def _english_name(code: str) -> str:
    """The English name of a language's or a script's code, which is its own where there is none."""
    name: str = names.code_to_names(code).get("en", code)
    return name.removesuffix(" (individual language)")


def _by_name(kind: str, name: str) -> str | None:
    """The code of a language, script or territory by one of its English names, as it stands: no prefixes."""
    trie, name = _english(kind), names.normalize_name(name)
    code: str | None = names.get_trie_value(trie, name) if name in trie else None
    return code


@cache
def _english(kind: str) -> Any:
    return names.load_trie(names.data_filename(f"trie/en/name_to_{kind}.marisa"))
