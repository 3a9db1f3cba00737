"""Progress of long commands: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mtllm_edge.console import duration, note

if TYPE_CHECKING:
    pass


_FIRST_LINE, _LAST_LINE = 10.0, 300.0
"""Seconds between lines of progress: at first, and in the end."""


@contextmanager
def progress_bar(total: int, what: str = "texts") -> Iterator[Callable[[int], None]]:
    """Show a progress bar over `total` texts on stderr, on a terminal only; yields a function that advances it."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


@contextmanager
def job_progress() -> Iterator[Bar | Lines]:
    """Show on stderr how far a job is: a bar on a terminal, a line now and then in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("texts"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress)


class Bar:
    """A bar over the rows of a job."""

    def __init__(self, progress: Progress) -> None:
        """Draw it in `progress`."""
        self._progress = progress

    def start(self, done: int) -> None:
        """Begin with `done` rows, which do not count for the speed; nothing is shown before."""
        self._task = self._progress.add_task("texts", total=None, completed=done)

    def expect(self, total: int) -> None:
        """Let it be `total` rows long."""
        self._progress.update(self._task, total=total)

    def advance(self, texts: int) -> None:
        """So many texts more were computed."""
        self._progress.advance(self._task, texts)

    def settle(self, done: int) -> None:
        """`done` rows have their answers, all in all."""
        self._progress.update(self._task, completed=done)


class Lines:
    """The same as lines, few of them: the first after ten seconds, one every five minutes in the end."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, done: int) -> None:
        """As for `Bar`, likewise the others."""
        self._first = self._done = self._total = done
        self._began, self._next = time.monotonic(), _FIRST_LINE

    def expect(self, total: int) -> None:
        """See `Bar`."""
        self._total = total

    def advance(self, texts: int) -> None:
        """See `Bar`."""
        self._done += texts
        seconds = time.monotonic() - self._began
        if seconds < self._next:
            return
        self._next = seconds + min(max(_FIRST_LINE, seconds / 2), _LAST_LINE)
        rate = (self._done - self._first) / seconds
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        note(f"{self._done:,} of about {self._total:,} texts, {rate:.1f} texts/s, {duration(left)} left")

    def settle(self, done: int) -> None:
        """See `Bar`."""
        self._done = done


class _Rate(ProgressColumn):
    """Texts, or what else is counted, per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {task.description}/s" if task.speed else "")
