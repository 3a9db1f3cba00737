"""Determine the language of each row of a table from a column or an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtllm_edge.bundle.manifest import Manifest
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.extras import require
from mtllm_edge.files.columns import cell_of
from mtllm_edge.languages.resolver import LanguageResolver, is_auto


class RowLanguages:
    """The language of each row: the value of the language column, or else of the language option."""

    def __init__(self, manifest: Manifest, language: str | None, column: str | None) -> None:
        """Take the manifest of a bundle and the options; UsageError if the language is unknown or unsupported."""
        self._needed = manifest.encoder.needs_language
        self._resolver = LanguageResolver(manifest.languages, needed=self._needed)
        self._column = column
        self._default = None if language is None else self._resolve(language)

    @property
    def enabled(self) -> bool:
        """Whether results should include the language."""
        return self._column is not None or self._default is not None

    def language_of(self, row: Mapping[str, Any]) -> str | None:
        """Return the language code of a row, ``auto``, or None.

        Raises:
            UsageError: The row lacks the language column. The message follows the name of the row's place.
            DataError: The language is unknown, or missing and required by the encoder.
        """
        if self._column is None:
            return self._default
        name = cell_of(row, self._column)
        place = f", column {self._column!r}"
        if name is None or name == "":
            if self._needed and self._default is None:
                raise DataError(f"{place}, has no language; add one, or pass --lang auto")
            return self._default
        if not isinstance(name, str):
            raise DataError(f"{place}, holds {name!r}, expected a language code")
        try:
            return self._resolve(name)
        except UsageError as error:
            raise DataError(f"{place}: {error}") from None

    def _resolve(self, name: str) -> str:
        if is_auto(name):
            require("lang", "py3langid")
            return name
        return self._resolver.code(name)
