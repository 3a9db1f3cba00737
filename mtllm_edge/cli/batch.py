"""A batch job on the command line: input, progress, output and summary of classify and embed."""

from __future__ import annotations

import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mtllm_edge import console
from mtllm_edge.bundle.manifest import MANIFEST_NAME
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli import views
from mtllm_edge.cli.progress import job_progress
from mtllm_edge.errors import DataError, NoRowsError, UsageError
from mtllm_edge.files.rows import RowError
from mtllm_edge.files.sources import STDIN, Source, find_sources
from mtllm_edge.inputs import parts_of
from mtllm_edge.jobs import output
from mtllm_edge.jobs.answer_store import Journal, Scratch
from mtllm_edge.jobs.inputs import Reading, Request
from mtllm_edge.jobs.journal import journal, rejected_path
from mtllm_edge.jobs.runner import Model, Runner
from mtllm_edge.jobs.spec import Job

if TYPE_CHECKING:
    pass


_TABLE_ROWS = 1000
"""Rows of one table; more of them make several."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asks for."""

    command: str
    bundle: Bundle
    sources: Sequence[Source]
    request: Request
    form: str
    """Of the output: one of `writing.FORMS`, ``npy``, or ``table``."""
    output: Path | None
    """None is stdout; then there is no journal, and no row is set aside."""
    options: Mapping[str, str | None]
    """What else changes the output, as the command line names it."""
    strict: bool
    force: bool
    restart: bool


def sources_of(texts: Sequence[str], text_column: str | None, output: Path | None) -> list[Source]:
    """The inputs of a command; none at all are stdin.

    Raises:
        UsageError: There are none, or wrong ones.
        DataError: A text on the command line is none.
    """
    if not texts and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("no texts; give some in quotes, name a file of texts, or pipe them in")
    own = [] if output is None else [output, rejected_path(output)]
    stdin = io.BytesIO() if sys.stdin is None else sys.stdin.buffer  # services and windows may have none
    sources = find_sources(texts or (STDIN,), stdin, own)
    for source in sources:
        if output is not None and source.identity.name == str(rejected_path(output).resolve()):
            raise UsageError(
                f"{source.name} is where rows of {output} are set aside; rename it, or name another --output"
            )
    if text_column is not None and not any(source.has_columns for source in sources):
        raise UsageError("--text-column names a column of a file, but no file with columns is given")
    return sources


def perform(order: Order, load: Callable[[], AbstractContextManager[Model]]) -> None:
    """Do what a command asks for.

    Args:
        order: What that is.
        load: Loads the model, for as long as the block lasts.

    Raises:
        MtllmError: Of any kind; what is done by then is in the journal.
    """
    output.check_form(order.form)
    strict = order.strict or order.output is None
    readings = _survey(order, strict=strict)
    if strict:
        _check(order.request, readings)
    with _store(order) as store:
        if store is None:
            console.note(f"{order.output} was finished by the run before; nothing is left to do")
            return
        before = store.progress.read
        if before:
            console.note(f"going on after {console.count(before, 'row')} of an interrupted run")
        most = output.MOST_ROWS.get(order.form, output.ENDLESS)
        with load() as model, job_progress() as pace:
            runner = Runner(order.request, readings, store, pace, strict=strict, most_rows=most)
            started = time.perf_counter()
            runner.run(model)
            seconds = time.perf_counter() - started
        joined = output.Joined(order.request, readings, store)
        if not joined.first:
            raise DataError(f"no row can be read, the first is this: {runner.first_fault}")
        _note_names(joined)
        lost = _deliver(order, joined, store)
    if lost is not None:
        console.note(f"note: {lost}")
    _summarise(order, joined, runner, seconds, before)


def _survey(order: Order, *, strict: bool) -> list[Reading]:
    """A look at all inputs; empty files among others are left out."""
    readings: list[Reading] = []
    empty: list[NoRowsError] = []
    for source in order.sources:
        try:
            readings.append(order.request.survey(source))
        except NoRowsError as error:
            empty.append(error)
    if empty and (strict or not readings):
        raise empty[0]
    if empty:
        console.note(f"note: {console.count(len(empty), 'file')} without any text left out, the first: {empty[0]}")
    notes: dict[str, list[str]] = {}
    for reading in readings:
        if reading.note is not None:
            notes.setdefault(reading.note, []).append(reading.source.name)
    for note, names in notes.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.note(f"note: {names[0]}{more}: {note}")
    return readings


def _check(request: Request, readings: Sequence[Reading]) -> None:
    """Read everything once, and stop at the first fault, before a model is loaded."""
    for reading, number, _, item in request.read(readings):
        if isinstance(item, RowError):
            raise DataError(f"{reading.source.place(number)}{item.said}")


@contextmanager
def _store(order: Order) -> Iterator[Journal | Scratch | None]:
    if order.output is None:
        yield Scratch()
        return
    job = Job(
        command=order.command,
        bundle=hashlib.sha256((order.bundle.path / MANIFEST_NAME).read_bytes()).hexdigest(),
        options={name: value for name, value in order.options.items() if value} | {"--format": order.form},
        inputs=[source.identity for source in order.sources],
    )
    with journal(order.output, job, force=order.force, restart=order.restart) as opened:
        yield opened


def _note_names(joined: output.Joined) -> None:
    for name, free in joined.names.items():
        if name != free:
            console.note(f"note: the input has a column {name!r}; the new one is called {free!r}")


def _deliver(order: Order, joined: output.Joined, store: Journal | Scratch) -> str | None:
    """Write the output; returns what its format could not hold."""
    if isinstance(store, Journal):
        with console.spinner("writing the output"):
            return store.write_result(lambda file: _write(order, joined, file))
    if order.form == "table":
        for group in output.tables(joined, _TABLE_ROWS):
            console.print_stdout(
                views.predictions_table([(" | ".join(parts_of(item)), answer) for item, answer in group])
            )
        return None
    lost = output.write(order.form, sys.stdout.buffer, joined)
    sys.stdout.flush()
    return lost


def _write(order: Order, joined: output.Joined, file: BinaryIO) -> str | None:
    if order.form != "table":
        return output.write(order.form, file, joined)
    for group in output.tables(joined, _TABLE_ROWS):
        table = views.predictions_table([(" | ".join(parts_of(item)), answer) for item, answer in group])
        file.write(console.render(table))
    return None


def _summarise(order: Order, joined: output.Joined, runner: Runner, seconds: float, before: int) -> None:
    blank = sum(reading.blank for reading in joined.readings)
    if blank:
        console.note(f"note: {console.count(blank, 'blank line')} left out")
    limit = order.bundle.manifest.encoder.max_tokens
    if joined.truncated:
        console.note(f"note: {console.count(joined.truncated, 'text')} longer than {limit} tokens lost the end")
    if joined.split:
        console.note(f"note: {console.count(joined.split, 'text')} longer than {limit} tokens read in windows")
    if joined.abstained:
        console.note(f"note: unsure of {console.count(joined.abstained, 'text')}")
    if len(joined.languages.texts) > 1:
        console.print_stderr(views.languages_table(joined.languages))
    progress = joined.store.progress
    if progress.rejected and order.output is not None:
        console.note(
            f"note: {console.count(progress.rejected, 'row')} that cannot be read set aside in "
            f"{rejected_path(order.output)}, the first: {runner.first_fault}"
        )
    now = progress.read - before
    part = f", {now:,} of them now" if before else ""
    console.note(
        f"{console.count(joined.rows, 'text')}{part} in {seconds:.1f} s, {now / max(seconds, 1e-9):.1f} texts/s"
    )


def output_format(output: Path | None, by_suffix: dict[str, str], without: tuple[str, str]) -> str:
    """The form of the results; `without` an output file, that for a terminal and that for a pipe."""
    if output is None:
        if sys.stdout is None:
            raise UsageError("the standard output is closed; name a file with --output")
        return without[0] if sys.stdout.isatty() else without[1]
    try:
        return by_suffix[output.suffix.lower()]
    except KeyError:
        *others, last = by_suffix
        raise UsageError(f"--output {output} should end in {', '.join(others)} or {last}") from None
