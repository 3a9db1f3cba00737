"""A command over texts from its first look at the inputs to its last line: what classify and embed share."""

from __future__ import annotations

import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mtllm_edge import render
from mtllm_edge.bundle import Bundle
from mtllm_edge.errors import DataError, NoRowsError, UsageError
from mtllm_edge.jobs import writing
from mtllm_edge.jobs.job import Job
from mtllm_edge.jobs.journal import journal, rejected_path
from mtllm_edge.jobs.reading import Reading, Request
from mtllm_edge.jobs.running import Model, Runner
from mtllm_edge.jobs.sources import STDIN, Source, find_sources
from mtllm_edge.jobs.stores import Journal, Scratch
from mtllm_edge.kinds import parts_of
from mtllm_edge.manifest import MANIFEST_NAME
from mtllm_edge.records import Fault

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
    writing.check_form(order.form)
    strict = order.strict or order.output is None
    readings = _survey(order, strict=strict)
    if strict:
        _check(order.request, readings)
    with _store(order) as store:
        if store is None:
            render.note(f"{order.output} was finished by the run before; nothing is left to do")
            return
        before = store.progress.read
        if before:
            render.note(f"going on after {render.count(before, 'row')} of an interrupted run")
        most = writing.MOST_ROWS.get(order.form, writing.ENDLESS)
        with load() as model, render.pacing() as pace:
            runner = Runner(order.request, readings, store, pace, strict=strict, most_rows=most)
            started = time.perf_counter()
            runner.run(model)
            seconds = time.perf_counter() - started
        joined = writing.Joined(order.request, readings, store)
        if not joined.first:
            raise DataError(f"no row can be read, the first is this: {runner.first_fault}")
        _note_names(joined)
        lost = _deliver(order, joined, store)
    if lost is not None:
        render.note(f"note: {lost}")
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
        render.note(f"note: {render.count(len(empty), 'file')} without any text left out, the first: {empty[0]}")
    notes: dict[str, list[str]] = {}
    for reading in readings:
        if reading.note is not None:
            notes.setdefault(reading.note, []).append(reading.source.name)
    for note, names in notes.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        render.note(f"note: {names[0]}{more}: {note}")
    return readings


def _check(request: Request, readings: Sequence[Reading]) -> None:
    """Read everything once, and stop at the first fault, before a model is loaded."""
    for reading, number, _, item in request.read(readings):
        if isinstance(item, Fault):
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


def _note_names(joined: writing.Joined) -> None:
    for name, free in joined.names.items():
        if name != free:
            render.note(f"note: the input has a column {name!r}; the new one is called {free!r}")


def _deliver(order: Order, joined: writing.Joined, store: Journal | Scratch) -> str | None:
    """Write the output; returns what its format could not hold."""
    if isinstance(store, Journal):
        with render.busy("writing the output"):
            return store.write_result(lambda file: _write(order, joined, file))
    if order.form == "table":
        for group in writing.tables(joined, _TABLE_ROWS):
            render.show(render.predictions_table([(" | ".join(parts_of(item)), answer) for item, answer in group]))
        return None
    lost = writing.write(order.form, sys.stdout.buffer, joined)
    sys.stdout.flush()
    return lost


def _write(order: Order, joined: writing.Joined, file: BinaryIO) -> str | None:
    if order.form != "table":
        return writing.write(order.form, file, joined)
    for group in writing.tables(joined, _TABLE_ROWS):
        table = render.predictions_table([(" | ".join(parts_of(item)), answer) for item, answer in group])
        file.write(render.to_bytes(table))
    return None


def _summarise(order: Order, joined: writing.Joined, runner: Runner, seconds: float, before: int) -> None:
    blank = sum(reading.blank for reading in joined.readings)
    if blank:
        render.note(f"note: {render.count(blank, 'blank line')} left out")
    limit = order.bundle.manifest.encoder.max_tokens
    if joined.truncated:
        render.note(f"note: {render.count(joined.truncated, 'text')} longer than {limit} tokens lost the end")
    if joined.split:
        render.note(f"note: {render.count(joined.split, 'text')} longer than {limit} tokens read in windows")
    if joined.abstained:
        render.note(f"note: unsure of {render.count(joined.abstained, 'text')}")
    if len(joined.languages.texts) > 1:
        render.tell(render.languages_table(joined.languages))
    progress = joined.store.progress
    if progress.rejected and order.output is not None:
        render.note(
            f"note: {render.count(progress.rejected, 'row')} that cannot be read set aside in "
            f"{rejected_path(order.output)}, the first: {runner.first_fault}"
        )
    now = progress.read - before
    part = f", {now:,} of them now" if before else ""
    render.note(f"{render.count(joined.rows, 'text')}{part} in {seconds:.1f} s, {now / max(seconds, 1e-9):.1f} texts/s")
