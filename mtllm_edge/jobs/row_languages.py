"""The language of each row of a table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mtllm_edge.bundle.manifest import Manifest
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.extras import require
from mtllm_edge.languages.resolver import is_auto
from mtllm_edge.languages.warnings import warn

if TYPE_CHECKING:
    from mtllm_edge.languages.matching import LanguageMatcher


class RowLanguages:
    """The language of each row of a file: what its column says, else what the option says."""

    def __init__(self, manifest: Manifest, language: str | None, column: str | None) -> None:
        """Take a bundle's manifest, and the options.

        Raises:
            UsageError: The encoder knows no such language, nor one near to it.
        """
        self._needed = manifest.encoder.needs_language
        self._known = manifest.languages if self._needed else ()
        self._column = column
        self._otherwise = None if language is None else self._code(language)

    @cached_property
    def _matcher(self) -> LanguageMatcher:
        from mtllm_edge.languages.matching import LanguageMatcher

        return LanguageMatcher(self._known)

    @property
    def enabled(self) -> bool:
        """Whether languages are known or identified, so that results should tell them."""
        return self._column is not None or self._otherwise is not None

    def language_of(self, record: Mapping[str, Any], place: str) -> str | None:
        """The code of a row's language, ``auto``, or None.

        Args:
            record: The row.
            place: Where it stands, for messages.

        Raises:
            UsageError: It has no such column.
            DataError: Its language is unknown, or missing where the encoder must be told.
        """
        if self._column is None:
            return self._otherwise
        if self._column not in record:
            raise UsageError(f"{place} has no column {self._column!r}, only {', '.join(map(repr, record))}")
        name = record[self._column]
        if name is None or name == "":
            if self._needed and self._otherwise is None:
                raise DataError(f"{place}, column {self._column!r}, names no language; fill it, or add --lang auto")
            return self._otherwise
        if not isinstance(name, str):
            raise DataError(f"{place}, column {self._column!r}, holds {name!r}, expected the code of a language")
        try:
            return self._code(name)
        except UsageError as error:
            raise DataError(f"{place}, column {self._column!r}: {error}") from None

    def _code(self, name: str) -> str:
        if is_auto(name):
            require("lang", "py3langid")
            return name
        match = self._matcher.match(name)
        warn([match.note])
        return match.code
