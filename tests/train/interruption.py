"""A training run that is killed after its next save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from mtllm_edge_train.training import loop


class Killed(BaseException):
    """Stands for a kill."""


@contextmanager
def killed_after_save() -> Iterator[None]:
    """Kill the run inside the block after its next save."""
    save = loop._save

    def save_and_die(*arguments: Any) -> None:
        save(*arguments)
        raise Killed

    with mock.patch.object(loop, "_save", save_and_die), pytest.raises(Killed):
        yield
