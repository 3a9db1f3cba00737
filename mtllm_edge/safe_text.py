"""Text from files, models and native libraries, made safe to print."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def has_control_characters(text: str) -> bool:
    """Return whether a text has line ends or other control characters."""
    return _CONTROL.search(text) is not None


def printable(text: str) -> str:
    """Replace line ends and other control characters by spaces, so that no escape sequence reaches the terminal."""
    return _CONTROL.sub(" ", text)


def one_line(message: object) -> str:
    """Return a message, such as an exception, as one line without control characters and repeated spaces."""
    return " ".join(printable(str(message)).split())
