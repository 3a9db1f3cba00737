"""License identifiers of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def is_non_commercial(license_name: str) -> bool:
    """Whether a license, by its name, forbids commercial use."""
    words = license_name.lower().replace("-", " ").replace("_", " ").split()
    return "nc" in words or "noncommercial" in words or "non commercial" in " ".join(words)
