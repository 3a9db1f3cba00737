"""Warnings of the library, printed as notes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from mtllm_edge import console
from mtllm_edge.languages.warnings import LanguageWarning

if TYPE_CHECKING:
    pass


_Command = TypeVar("_Command", bound=Callable[..., Any])


def print_language_warnings(command: _Command) -> _Command:
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
                console.note(f"note: {message}")

        warnings.simplefilter("always", LanguageWarning)
        warnings.showwarning = note
        yield
