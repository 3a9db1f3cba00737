"""What commands that read texts share on languages: their options, the language of a row, the summary of a job."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtllm_edge import render
from mtllm_edge.bundle import Bundle
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.extras import require
from mtllm_edge.language_notes import LanguageWarning, warn
from mtllm_edge.manifest import Manifest
from mtllm_edge.spoken import is_auto

if TYPE_CHECKING:
    from mtllm_edge.languages import Languages

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _at_the_door(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and is_auto(value):
        require("lang", "py3langid")
    return value


lang = click.option(
    "--lang",
    "--language",
    "language",
    metavar="CODE",
    callback=_at_the_door,
    help="Language of the texts, for encoders that must be told, and for the summary: a code or an English name, or "
    "'auto', which tells it by the letters (extra [lang]).",
)
language_column = click.option(
    "--language-column",
    metavar="NAME",
    help="Column of csv and jsonl files that holds the language; where it is empty, --lang counts.",
)


def notes_on_languages(command: _Command) -> _Command:
    """Print what a command warns of languages as notes, each once."""

    @wraps(command)
    def noting(*arguments: Any, **options: Any) -> Any:
        with _noting():
            return command(*arguments, **options)

    return noting  # type: ignore[return-value]


@contextmanager
def _noting() -> Iterator[None]:
    said: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, LanguageWarning):
                show(message, category, *place, **more)
            elif str(message) not in said:
                said.add(str(message))
                render.note(f"note: {message}")

        warnings.simplefilter("always", LanguageWarning)
        warnings.showwarning = note
        yield


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
    def _languages(self) -> Languages:
        from mtllm_edge.languages import Languages

        return Languages(self._known)

    @property
    def asked(self) -> bool:
        """Whether languages are known or identified, so that results should tell them."""
        return self._column is not None or self._otherwise is not None

    def of(self, record: Mapping[str, Any], place: str) -> str | None:
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
        match = self._languages.find(name)
        warn([match.note])
        return match.code


class LanguageTally:
    """What a job read, counted by language."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.texts: Counter[str] = Counter()
        """Language -> its number of texts."""
        self.labels: dict[str, Counter[str]] = defaultdict(Counter)
        """Language -> label -> its number of texts."""
        self._confidence: dict[str, float] = defaultdict(float)

    def add(self, language: str | None, label: str | None = None, confidence: float = 0.0) -> None:
        """Count a text; what has no language is left out."""
        if language is None:
            return
        self.texts[language] += 1
        if label is not None:
            self.labels[language][label] += 1
            self._confidence[language] += confidence

    def mean_confidence(self, *languages: str) -> float:
        """Mean over the texts of some languages."""
        return sum(self._confidence[code] for code in languages) / sum(self.texts[code] for code in languages)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
def languages(bundle: Path | None) -> None:
    """Print each language that a BUNDLE knows on a line: its code, and after a tab its English name.

    Without a bundle, or of one that need not be told, these are the codes of FLORES-200, by which results name
    languages then; others may be given, too.
    """
    from mtllm_edge.languages import Languages

    manifest = None if bundle is None else Bundle.open(bundle).manifest
    known = manifest.languages if manifest is not None and manifest.encoder.needs_language else ()
    for code, title in Languages(known).titles().items():
        click.echo(f"{render.plain(code)}\t{title}")
