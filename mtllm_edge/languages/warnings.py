"""What people are told of languages, apart from what knows them: that takes a while to import."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

UNDETERMINED = "und"
"""The code of a text in no language, such as ``12:30``, for encoders that need none (ISO 639-2)."""
_SHOWN = 8


class LanguageWarning(UserWarning):
    """Texts are read as another language than their own, which the encoder lacks or nobody could tell."""


def warn(notes: Iterable[str | None]) -> None:
    """Give a `LanguageWarning` for each note, once; None is no note."""
    for note in dict.fromkeys(notes):
        if note is not None:
            warnings.warn(note, LanguageWarning, stacklevel=2)


def abbreviate(codes: Sequence[str]) -> str:
    """The first of some codes, for a message."""
    shown = ", ".join(codes[:_SHOWN])
    return shown if len(codes) <= _SHOWN else f"{shown} ... ({len(codes)} in all)"
