"""Terminal output that all commands share: notes, tables, spinners."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from mtllm_edge.safe_text import printable

_FILE_WIDTH = 120
"""Width of a table in a file or a pipe."""


def note(message: str) -> None:
    """Print a line to stderr."""
    click.echo(printable(message), err=True)


def print_stderr(renderable: RenderableType) -> None:
    """Print a table or another renderable to stderr."""
    click.echo(render(renderable).decode(), err=True, nl=False)


def print_stdout(renderable: RenderableType) -> None:
    """Print a renderable to stdout, as wide as the terminal."""
    console = Console()
    if not console.is_terminal:
        click.echo(render(renderable), nl=False)
        return
    with console.capture() as capture:
        console.print(renderable)
    click.echo(_without_padding(capture.get()), nl=False)


def render(renderable: RenderableType) -> bytes:
    """Return a renderable as plain UTF-8 text."""
    buffer = io.StringIO()
    Console(file=buffer, width=_FILE_WIDTH, force_terminal=False).print(renderable)
    return _without_padding(buffer.getvalue()).encode()


def _without_padding(lines: str) -> str:
    """Drop spaces at the ends of lines, which wrap where a terminal draws letters wider than rich expects."""
    return "\n".join(line.rstrip() for line in lines.split("\n"))


@contextmanager
def spinner(message: str) -> Iterator[None]:
    """Show a spinner on stderr during a block, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(message):
        yield


def duration(seconds: float) -> str:
    """Format a duration: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def plain_text(text: str) -> Text:
    """Return a text without control characters and without rich's markup."""
    return Text(printable(text))


def facts_table(facts: Mapping[str, str | Text]) -> Table:
    """Return a table with names on the left and values on the right."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(plain_text(name), value if isinstance(value, Text) else plain_text(value))
    return table


def file_size(size: int) -> str:
    """Format a size in bytes."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def count(number: int, noun: str) -> str:
    """Format a number with its noun: ``1 text``, ``1,200 texts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def counts(labels: Mapping[str, int]) -> str:
    """Format labels with their numbers of texts: ``ham 120, spam 80``."""
    return ", ".join(f"{label} {number:,}" for label, number in labels.items())
