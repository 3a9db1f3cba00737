"""Print warnings of the library as notes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtllm_edge import console
from mtllm_edge.backends.probing.gpu import GpuWarning
from mtllm_edge.embedder import TruncationWarning
from mtllm_edge.languages.warnings import LanguageWarning

_PRINTED = (GpuWarning, LanguageWarning, TruncationWarning)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each distinct warning about GPUs, languages and truncation once, as a note; leave others as they are."""
    printed: set[str] = set()
    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *location: Any, **options: Any) -> None:
            if not issubclass(category, _PRINTED):
                show_other(message, category, *location, **options)
            elif str(message) not in printed:
                printed.add(str(message))
                console.note(f"note: {message}")

        for category in _PRINTED:
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield
