"""The language that each text of a call is read as: told, identified, or not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input, parts_of
from mtllm_edge.languages.warnings import UNDETERMINED, abbreviate, warn

if TYPE_CHECKING:
    from mtllm_edge.languages.matching import LanguageMatcher

AUTO = "auto"
"""Stands for a code where the language is to be identified."""
_ENGLISH = "en"


class LanguageResolver:
    """Turns what a call says of languages into a bundle's codes."""

    def __init__(self, codes: Sequence[str], *, needed: bool) -> None:
        """Take the codes of an encoder, and whether it must be told one for every text."""
        self._codes, self._needed = tuple(codes), needed

    @cached_property
    def _matcher(self) -> LanguageMatcher:
        from mtllm_edge.languages.matching import LanguageMatcher  # slow to import

        return LanguageMatcher(self._codes if self._needed else ())

    def resolve(self, texts: Sequence[Input], language: str | Sequence[str | None] | None) -> list[str | None]:
        """The code of each text's language; None where nothing was said of it.

        Args:
            texts: What is read.
            language: A name that `LanguageMatcher.match` accepts, or ``auto``; one for all texts or one per text; None
                where it is unknown.

        Warns:
            LanguageWarning: A text is read as another language than its own.

        Raises:
            UsageError: A language is unknown or missing, there are not as many of them as of texts, or they must be
                identified and the extra [lang] is not installed.
        """
        if language is None or isinstance(language, str):
            asked: list[str | None] = [language] * len(texts)
        else:
            asked = list(language)
            if len(asked) != len(texts):
                raise UsageError(f"there are {len(texts)} texts and {len(asked)} languages; give one of each")
        if self._needed and None in asked:
            raise UsageError(
                f"this encoder must know the language of {_which(asked, language)}; "
                f"name one of {abbreviate(self._codes)}, or say {AUTO!r}"
            )
        found = self._named(asked, several=not isinstance(language, str))
        unnamed = [place for place, name in enumerate(asked) if name is not None and is_auto(name)]
        read_as = [None if name is None else found.get(name) for name in asked]
        for place, code in zip(unnamed, self._identified([texts[place] for place in unnamed]), strict=True):
            read_as[place] = code
        return read_as

    def _named(self, asked: Sequence[str | None], *, several: bool) -> dict[str, str]:
        """The codes of all languages that are named."""
        firsts: dict[str, int] = {}
        for place, name in enumerate(asked):
            if name is not None and not isinstance(name, str):
                raise UsageError(f"text {place}: its language has the type {type(name).__name__}, expected str")
            if name is not None:
                firsts.setdefault(name, place)
        codes: dict[str, str] = {}
        notes: list[str | None] = []
        for name, place in firsts.items():
            if is_auto(name):
                continue
            if self._needed and name in self._codes:
                codes[name] = name
                continue
            try:
                match = self._matcher.match(name)
            except UsageError as error:
                raise UsageError(f"text {place}: {error}" if several else str(error)) from None
            codes[name] = match.code
            notes.append(match.note)
        warn(notes)
        return codes

    def _identified(self, texts: Sequence[Input]) -> list[str]:
        """The code of each text's language as far as its letters tell it."""
        if not texts:
            return []
        from mtllm_edge.languages.identification import identify  # py3langid is an extra

        default = self._default()
        codes: list[str] = []
        notes: list[str | None] = []
        for tag in identify([" ".join(parts_of(text)) for text in texts]):
            try:
                match = None if tag is None else self._matcher.match(tag)
            except UsageError:  # nothing that the encoder knows is near to it
                match = None
                notes.append(f"the encoder knows nothing near to the language {tag}; {default} is used")
            codes.append(default if match is None else match.code)
            notes.append(None if match is None else match.note)
            if tag is None and self._needed:
                notes.append(f"texts in which no language can be told are read as {default}")
        warn(notes)
        return codes

    def _default(self) -> str:
        """What a text is read as whose language nobody can tell: English, where the encoder knows it."""
        if not self._needed:
            return UNDETERMINED
        try:
            return self._matcher.match(_ENGLISH).code
        except UsageError:
            return self._codes[0]


def is_auto(name: str) -> bool:
    """Whether this stands for a language that is to be identified."""
    return name.strip().casefold() == AUTO


def _which(asked: Sequence[str | None], language: object) -> str:
    return "the texts" if language is None else f"text {asked.index(None)}"
