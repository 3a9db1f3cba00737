"""Errors of other libraries as one line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from mtllm_edge.errors import ModelError, MtllmError


@contextmanager
def one_line_error(fault: str, advice: str, kind: type[MtllmError] = ModelError) -> Iterator[None]:
    """Turn what the libraries raise on a damaged or foreign model, or data set, into one error of one line."""
    try:
        yield
    except MtllmError:
        raise
    except Exception as error:  # tokenizers raises plain Exception; transformers lets through what lies under it
        reason = textwrap.shorten(str(error), 240) or type(error).__name__
        raise kind(f"{fault} ({reason}); {advice}") from None
