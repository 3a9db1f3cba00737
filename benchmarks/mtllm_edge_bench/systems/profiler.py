"""Measure the time of stages and count tokens."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Profiler:
    """Seconds by stage and tokens by part. Stages do not nest."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset all measurements."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tokens: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
