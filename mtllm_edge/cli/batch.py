"""Run classify or embed over all inputs: check them, show progress, write the output and a summary."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click
from rich.table import Table

from mtllm_edge import console
from mtllm_edge.bundle.manifest import MANIFEST_NAME
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli import views
from mtllm_edge.cli.options import BatchOptions
from mtllm_edge.cli.progress import job_progress
from mtllm_edge.errors import DataError, NoRowsError, UsageError
from mtllm_edge.files.columns import Columns
from mtllm_edge.files.digest import sha256_file
from mtllm_edge.files.rows import RowError
from mtllm_edge.files.sources import STDIN, Source, find_sources
from mtllm_edge.inputs import Kind, parts_of
from mtllm_edge.jobs import output
from mtllm_edge.jobs.inputs import InputReader, JobInput
from mtllm_edge.jobs.journal import Journal, open_journal, rejected_path
from mtllm_edge.jobs.row_languages import RowLanguages
from mtllm_edge.jobs.runner import Model, Runner
from mtllm_edge.jobs.spec import Job

_DEFAULT_COLUMNS = Columns()
_ROWS_PER_TABLE = 1000
_NOT_IN_JOB = {"texts", "bundle", "threads", "gpu_layers", "output", "form", "strict", "force", "restart"}
"""Parameters that leave the results as they are, or that a job records in other fields."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a command reads and writes."""

    options: BatchOptions
    form: str
    """Output format: one of `mtllm_edge.jobs.output.FORMATS`, ``npy``, or ``table``."""
    sources: Sequence[Source]
    bundle: Bundle
    languages: RowLanguages

    @classmethod
    def open(cls, options: BatchOptions, form: str) -> Batch:
        """Find the inputs and open the bundle; raises MtllmError if they or the language cannot be used."""
        sources = _find_inputs(options.texts, options.text_column, options.output)
        bundle = Bundle.open(options.bundle)
        languages = RowLanguages(bundle.manifest, options.language, options.language_column)
        return cls(options=options, form=form, sources=sources, bundle=bundle, languages=languages)

    def reader(self, kind: Kind, columns: Columns = _DEFAULT_COLUMNS) -> InputReader:
        """Return how rows become inputs of a task of some kind."""
        language = self.languages.language_of if self.languages.enabled else None
        return InputReader(kind, self.options.text_column, columns, language)


def _find_inputs(texts: Sequence[str], text_column: str | None, output_path: Path | None) -> list[Source]:
    """Return the sources of all texts; without any, standard input."""
    if not texts and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("no texts; give some in quotes, name a file of texts, or pipe them in")
    outputs = [] if output_path is None else [output_path, rejected_path(output_path)]
    stdin = io.BytesIO() if sys.stdin is None else sys.stdin.buffer  # services and windows may have none
    sources = find_sources(texts or (STDIN,), stdin, outputs)
    for source in sources:
        if output_path is not None and source.identity.name == str(rejected_path(output_path).resolve()):
            raise UsageError(
                f"{source.name} is the file of rejected rows of {output_path}; rename it, or name another --output"
            )
    if text_column is not None and not any(source.has_columns for source in sources):
        raise UsageError("--text-column names a column of a file, but no file with columns is given")
    return sources


def run_batch(
    batch: Batch, reader: InputReader, load: Callable[[], AbstractContextManager[Model]], *, task: str | None = None
) -> None:
    """Compute the results of all rows and write the output; after a MtllmError, the results so far are in the journal.

    `load` loads the model for the duration of a block.
    """
    output.check_format(batch.form)
    strict = batch.options.strict or batch.options.output is None
    inputs = _inspect_inputs(batch, reader, strict=strict)
    if strict:  # raise the first error before the model is loaded
        for job_input, number, _, item in reader.read(inputs):
            if isinstance(item, RowError):
                raise DataError(f"{job_input.source.place(number)}{item.message}")
    with _journal(batch, task) as journal:
        if journal is None:
            console.note(f"{batch.options.output} was finished by an earlier run; nothing to do")
            return
        resumed = journal.progress.read
        if resumed:
            console.note(f"going on after {console.count(resumed, 'row')} of an interrupted run")
        max_rows = output.MAX_ROWS.get(batch.form, output.UNLIMITED)
        with load() as model, job_progress() as progress:
            runner = Runner(reader, inputs, journal, progress, strict=strict, max_rows=max_rows)
            start = time.perf_counter()
            runner.run(model)
            seconds = time.perf_counter() - start
        rows = output.OutputRows(reader, inputs, journal)
        if not rows.first:
            raise DataError(f"no row can be read; the first error: {runner.first_error}")
        for name, renamed in rows.names.items():
            if name != renamed:
                console.note(f"note: the input has a column {name!r}; the new one is called {renamed!r}")
        loss = _write_output(batch, rows)
    if loss is not None:
        console.note(f"note: {loss}")
    _print_summary(batch, rows, runner.first_error)
    computed = rows.progress.read - resumed
    part = f", {computed:,} of them now" if resumed else ""
    rate = computed / max(seconds, 1e-9)
    console.note(f"{console.count(rows.count, 'text')}{part} in {seconds:.1f} s, {rate:.1f} texts/s")


def _inspect_inputs(batch: Batch, reader: InputReader, *, strict: bool) -> list[JobInput]:
    """Read the beginning of each input; leave out empty files, unless all are empty."""
    inputs: list[JobInput] = []
    empty: list[NoRowsError] = []
    for source in batch.sources:
        try:
            inputs.append(reader.inspect(source))
        except NoRowsError as error:
            empty.append(error)
    if empty and (strict or not inputs):
        raise empty[0]
    if empty:
        console.note(f"note: {console.count(len(empty), 'file')} without texts left out, the first: {empty[0]}")
    for note in dict.fromkeys(job_input.note for job_input in inputs if job_input.note is not None):
        first, *others = (job_input.source.name for job_input in inputs if job_input.note == note)
        console.note(f"note: {first}{f' and {len(others)} more' if others else ''}: {note}")
    return inputs


@contextmanager
def _journal(batch: Batch, task: str | None) -> Iterator[Journal | None]:
    options = batch.options
    if options.output is None:
        with closing(Journal()) as journal:
            yield journal
        return
    context = click.get_current_context()
    assert context.info_name is not None
    recorded = {} if task is None else {"--task": task}
    for parameter in context.command.params:
        value = context.params[parameter.name or ""]
        if parameter.name not in _NOT_IN_JOB and value not in (None, (), ""):
            name = next(option for option in parameter.opts if option.startswith("--"))
            recorded.setdefault(name, ", ".join(value) if isinstance(value, tuple) else str(value))
    job = Job(
        command=context.info_name,
        bundle=sha256_file(batch.bundle.path / MANIFEST_NAME),
        options=recorded | {"--format": batch.form},
        inputs=[source.identity for source in batch.sources],
    )
    with open_journal(options.output, job, force=options.force, restart=options.restart) as opened:
        yield opened


def _write_output(batch: Batch, rows: output.OutputRows) -> str | None:
    """Write the output; return a message if the format cannot represent all of it."""
    if batch.options.output is not None:
        with console.spinner("writing the output"):
            return rows.journal.write_output(
                lambda file: _write(batch.form, rows, file, lambda table: file.write(console.render(table)))
            )
    loss = _write(batch.form, rows, sys.stdout.buffer, console.print_stdout)
    sys.stdout.flush()
    return loss


def _write(form: str, rows: output.OutputRows, file: BinaryIO, write_table: Callable[[Table], object]) -> str | None:
    if form != "table":
        return output.write(form, file, rows)
    for group in output.groups(rows, _ROWS_PER_TABLE):
        write_table(views.predictions_table([(" | ".join(parts_of(item)), result) for item, result in group]))
    return None


def _print_summary(batch: Batch, rows: output.OutputRows, first_error: str | None) -> None:
    count, limit = console.count, batch.bundle.manifest.encoder.max_tokens
    blank, rejected = sum(job_input.blank for job_input in rows.inputs), rows.progress.rejected
    if blank:
        console.note(f"note: {count(blank, 'blank line')} left out")
    if rows.truncated:
        console.note(f"note: {count(rows.truncated, 'text')} longer than {limit} tokens lost the end")
    if rows.split:
        console.note(f"note: {count(rows.split, 'text')} longer than {limit} tokens read in windows")
    if rows.abstained:
        console.note(f"note: unsure of {count(rows.abstained, 'text')}")
    if len(rows.languages.texts) > 1:
        console.print_stderr(views.languages_table(rows.languages))
    if rejected and batch.options.output is not None:
        path = rejected_path(batch.options.output)
        console.note(f"note: {count(rejected, 'row')} rejected, see {path}; the first: {first_error}")


def output_format(path: Path | None, by_suffix: dict[str, str], *, terminal: str, pipe: str) -> str:
    """Return the format of the output by the file's suffix, or the one for a terminal or a pipe if there is no file.

    Raises:
        UsageError: The suffix is unknown, or standard output is closed.
    """
    if path is None:
        if sys.stdout is None:
            raise UsageError("the standard output is closed; name a file with --output")
        return terminal if sys.stdout.isatty() else pipe
    try:
        return by_suffix[path.suffix.lower()]
    except KeyError:
        *others, last = by_suffix
        raise UsageError(f"--output {path} should end in {', '.join(others)} or {last}") from None
