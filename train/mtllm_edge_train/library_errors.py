"""Errors of the model libraries as one line."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mtllm_edge.errors import ModelError, MtllmError


@contextmanager
def one_line_error(fault: str, advice: str, kind: type[MtllmError] = ModelError) -> Iterator[None]:
    """Convert any error of the libraries, on a damaged or unsupported model or data set, into one line."""
    try:
        yield
    except MtllmError:
        raise
    except Exception as error:  # tokenizers raises Exception, transformers what its dependencies raise
        reason = textwrap.shorten(str(error), 240) or type(error).__name__
        raise kind(f"{fault} ({reason}); {advice}") from None


def quiet_transformers() -> None:
    """Disable the progress bars and warnings of transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # raised by the libraries about each other
