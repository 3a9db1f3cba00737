"""Language warnings and messages, apart from the language lookup that is slow to import."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

UNDETERMINED = "und"
"""ISO 639-2 code of a text in no language, such as ``12:30``, for encoders without language codes."""
_MAX_SHOWN = 8


class LanguageWarning(UserWarning):
    """A text is processed as another language, because its own is not supported or could not be identified."""


def warn(notes: Iterable[str | None]) -> None:
    """Issue a `LanguageWarning` for each distinct note; None is skipped."""
    for note in dict.fromkeys(notes):
        if note is not None:
            warnings.warn(note, LanguageWarning, stacklevel=2)


def abbreviate(codes: Sequence[str]) -> str:
    """Return the first codes and their total number, for a message."""
    first_codes = ", ".join(codes[:_MAX_SHOWN])
    return first_codes if len(codes) <= _MAX_SHOWN else f"{first_codes} ... ({len(codes)} in all)"
