"""Resolve the language argument of a call to one encoder code per text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input, parts_of
from mtllm_edge.languages.warnings import UNDETERMINED, abbreviate, warn

if TYPE_CHECKING:
    from mtllm_edge.languages.matching import LanguageMatcher, Match

AUTO = "auto"
"""Requests language identification."""
_ENGLISH = "en"


class LanguageResolver:
    """Language names and ``auto`` to the codes of an encoder."""

    def __init__(self, codes: Sequence[str], *, needed: bool) -> None:
        """Take the encoder's codes, and whether it needs one for each text; if not, all languages are accepted."""
        self._codes, self._needed = tuple(codes), needed

    @cached_property
    def matcher(self) -> LanguageMatcher:
        """The lookup by name."""
        from mtllm_edge.languages.matching import LanguageMatcher  # slow to import

        return LanguageMatcher(self._codes if self._needed else ())

    def code(self, name: str) -> str:
        """Return the code of a language name. Warnings and errors as for `resolve`."""
        if self._needed and name in self._codes:
            return name
        match = self.matcher.match(name)
        warn([match.note])
        return match.code

    def resolve(self, texts: Sequence[Input], language: str | Sequence[str | None] | None) -> list[str | None]:
        """Return the language code of each text; None where no language was requested.

        Args:
            texts: Used for identification and for their number.
            language: A name that `LanguageMatcher.match` accepts, or ``auto``; one for all texts or one per text; None
                where it is unknown.

        Warns:
            LanguageWarning: A substitute is used for the language of a text.

        Raises:
            UsageError: A language is unknown or missing, the numbers of languages and texts differ, or the extra [lang]
                is required and not installed.
        """
        names = self._names(len(texts), language)
        codes: dict[str | None, str | None] = {None: None}
        for index, name in enumerate(names):
            if name is not None and not isinstance(name, str):
                raise UsageError(f"text {index}: its language has the type {type(name).__name__}, expected str")
            if name is None or name in codes or is_auto(name):
                continue
            try:
                codes[name] = self.code(name)
            except UsageError as error:
                raise UsageError(str(error) if isinstance(language, str) else f"text {index}: {error}") from None
        identified = iter(self._identify([text for text, name in zip(texts, names, strict=True) if name not in codes]))
        return [codes[name] if name in codes else next(identified) for name in names]

    def _names(self, count: int, language: str | Sequence[str | None] | None) -> list[str | None]:
        """Return the requested language of each text."""
        names = [language] * count if language is None or isinstance(language, str) else list(language)
        if len(names) != count:
            raise UsageError(f"there are {count} texts and {len(names)} languages; give one of each")
        if self._needed and None in names:
            subject = "the texts" if language is None else f"text {names.index(None)}"
            raise UsageError(
                f"this encoder requires the language of {subject}; pass one of {abbreviate(self._codes)}, or {AUTO!r}"
            )
        return names

    def _identify(self, texts: Sequence[Input]) -> list[str]:
        """Return the code of each text's identified language, or of the default language."""
        if not texts:
            return []
        from mtllm_edge.languages.identification import identify  # requires the extra [lang]

        tags = identify([" ".join(parts_of(text)) for text in texts])
        matches = {tag: self._match_identified(tag) for tag in dict.fromkeys(tags)}
        warn(match.note for match in matches.values())
        return [matches[tag].code for tag in tags]

    def _match_identified(self, tag: str | None) -> Match:
        from mtllm_edge.languages.matching import Match

        default = self._default_code()
        if tag is None:
            note = f"texts without an identifiable language are processed as {default}"
            return Match(default, note if self._needed else None)
        try:
            return self.matcher.match(tag)
        except UsageError:
            note = f"the encoder supports no language similar to {tag}, which was identified; {default} is used instead"
            return Match(default, note)

    def _default_code(self) -> str:
        """Return the code of texts without an identified language: English, if the encoder supports it."""
        if not self._needed:
            return UNDETERMINED
        try:
            return self.matcher.match(_ENGLISH).code
        except UsageError:
            return self._codes[0]


def is_auto(name: str) -> bool:
    """Return whether a language name requests identification."""
    return name.strip().casefold() == AUTO
