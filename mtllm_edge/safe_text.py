"""Text from files and models, made safe to print."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def has_control_characters(text: str) -> bool:
    """Whether a text would move a terminal's cursor, or take several lines; none in a manifest does."""
    return _CONTROL.search(text) is not None


def printable(text: str) -> str:
    """A text without line ends and control signs: escape sequences in somebody's data must not reach the terminal."""
    return "".join(" " if unicodedata.category(sign) in ("Cc", "Zl", "Zp") else sign for sign in text)
