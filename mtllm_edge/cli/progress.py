"""Progress of long commands: bars on a terminal, lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mtllm_edge.console import duration, note

_FIRST_LINE, _LAST_LINE = 10.0, 300.0
"""Seconds between lines of progress: the shortest and the longest interval."""


class _RateColumn(ProgressColumn):
    """Texts, or another unit, per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {task.description}/s" if task.speed else "")


def _bars(console: Console) -> Progress:
    unit = TextColumn("{task.description}")
    columns = (unit, BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress bars on stderr, on a terminal only; yields a function of a bar's unit, number done and total."""
    with _bars(Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def update(unit: str, done: int, total: int) -> None:
            if unit not in bars:
                bars[unit] = progress.add_task(unit, total=total)
            progress.update(bars[unit], completed=done)

        yield update


@contextmanager
def progress_bar(total: int, unit: str = "texts") -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, on a terminal only; yields a function of the number done since the last call."""
    with _bars(Console(stderr=True)) as progress:
        yield partial(progress.advance, progress.add_task(unit, total=total))


@contextmanager
def job_progress() -> Iterator[_JobBar | _JobLines]:
    """Show the progress of a job on stderr: a bar on a terminal, an occasional line in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _JobLines()
        return
    with _bars(console) as progress:
        yield _JobBar(progress)


class _JobBar:
    """A bar over the rows of a job; the methods are those of `mtllm_edge.jobs.runner.ProgressDisplay`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def start(self, done: int) -> None:
        """Show the bar; `done` rows of an earlier run do not count for the speed."""
        self._bar = self._progress.add_task("texts", total=None, completed=done)

    def set_total(self, total: int) -> None:
        self._progress.update(self._bar, total=total)

    def advance(self, texts: int) -> None:
        self._progress.advance(self._bar, texts)

    def set_done(self, done: int) -> None:
        self._progress.update(self._bar, completed=done)


class _JobLines:
    """Lines of progress: the first after ten seconds, then less and less often, down to every five minutes."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, done: int) -> None:
        self._first = self._done = self._total = done
        self._start, self._next_line = time.monotonic(), _FIRST_LINE

    def set_total(self, total: int) -> None:
        self._total = total

    def advance(self, texts: int) -> None:
        self._done += texts
        seconds = time.monotonic() - self._start
        if seconds < self._next_line:
            return
        self._next_line = seconds + min(max(_FIRST_LINE, seconds / 2), _LAST_LINE)
        rate = (self._done - self._first) / seconds
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        note(f"{self._done:,} of about {self._total:,} texts, {rate:.1f} texts/s, {duration(left)} left")

    def set_done(self, done: int) -> None:
        self._done = done
