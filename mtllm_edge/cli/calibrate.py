"""The command calibrate: a sheet of labeled texts to temperatures and a threshold in the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge import console
from mtllm_edge.bundle.manifest import UNSURE, TaskSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.bundle.update import validate_writable
from mtllm_edge.cli import options, views, warnings
from mtllm_edge.cli.options import SHARE, other_columns_options
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.columns import LABEL_COLUMN, Columns, inputs_of, label_of
from mtllm_edge.files.tables import Table, read_table
from mtllm_edge.inputs import Input, vector_count
from mtllm_edge.jobs.row_languages import RowLanguages
from mtllm_edge.tasks.calibration import resolve_abstention, select_temperatures
from mtllm_edge.tasks.calibration_report import fit_calibration, validate_sample_size
from mtllm_edge.tasks.fitting import unique_indices
from mtllm_edge.tasks.head import Head
from mtllm_edge.tasks.store import update_calibration

PATH = click.Path(path_type=Path)
_SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class _Rows:
    """Different labeled texts."""

    inputs: list[Input]
    classes_N: NDArray[np.int64]
    languages: list[str | None]
    """That of each, as it was named."""


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("files", metavar="FILES...", nargs=-1, required=True)
@click.option("-t", "--task", metavar="NAME", help="The task; may be left out where the model has only one.")
@click.option("--text-column", metavar="NAME", help="Column that holds the text.  [default: text]")
@click.option("--label-column", metavar="NAME", default=LABEL_COLUMN, show_default=True, help="Column of the label.")
@other_columns_options
@options.language_option
@options.language_column_option
@click.option("--threshold", type=SHARE, metavar="P", help="Abstain where the confidence is below it; 0 is never.")
@click.option(
    "--target-accuracy", type=SHARE, metavar="A", help="Find the threshold above which texts are right that often."
)
@click.option("--abstain", metavar="LABEL", help=f"The label below the threshold; by default {UNSURE!r}.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; by default what suits.")
@warnings.print_language_warnings
def calibrate(
    bundle: Path,
    files: tuple[str, ...],
    *,
    task: str | None,
    text_column: str | None,
    label_column: str,
    pair_column: str | None,
    choices_columns: tuple[str, ...],
    language_column: str | None,
    language: str | None,
    threshold: float | None,
    target_accuracy: float | None,
    abstain: str | None,
    threads: int | None,
) -> None:
    """Make a task's confidence mean what it says, in a BUNDLE.

    FILES are .csv or .jsonl with the columns 'text' and 'label', with texts that the task was not trained on. Fitted
    are a temperature for the task, and one for each language with 50 texts or more; no label changes. What is shown was
    found by cross-validation: each text is judged by temperatures, and by a threshold, that have not seen it.
    """
    if threshold is not None and target_accuracy is not None:
        raise UsageError("--threshold names the threshold and --target-accuracy finds it; give one of them")
    sheet = _read(files, text_column)
    opened = Bundle.open(bundle)
    validate_writable(opened)
    name = opened.task_name(task)
    part = opened.manifest.tasks[name]
    limit, _ = resolve_abstention(part, threshold if target_accuracy is None else target_accuracy, abstain)
    languages = RowLanguages(opened.manifest, language, language_column)
    rows = _rows(sheet, name, part, Columns(pair_column, choices_columns), label_column, languages)
    logits_NC, codes = _logits(opened, name, rows, threads)
    report = fit_calibration(
        logits_NC,
        rows.classes_N,
        codes,
        select_temperatures(part, codes),
        threshold=limit or None,
        target_accuracy=target_accuracy,
    )
    changed = msgspec.structs.replace(
        part,
        temperature=report.fitted.temperature,
        temperatures=dict(report.fitted.temperatures),
        threshold=report.threshold or None,
        abstain=part.abstain if abstain is None else abstain,
    )
    update_calibration(opened, name, changed)
    console.print_stdout(views.calibration_view(report, changed.abstain or UNSURE))
    console.note(f"task {name!r} of {bundle} is calibrated")


def _read(files: Sequence[str], text_column: str | None) -> Table:
    other = [name for name in files if Path(name).suffix.lower() not in _SUFFIXES]
    if other:
        raise UsageError(
            f"{other[0]} should end in {' or '.join(_SUFFIXES)}: a file with a text and a label in each row"
        )
    return read_table(files, text_column=text_column)


def _rows(
    sheet: Table, name: str, task: TaskSpec, columns: Columns, label_column: str, languages: RowLanguages
) -> _Rows:
    """The rows of a sheet, without those that repeat another."""
    inputs = inputs_of(sheet, task.kind, columns)
    located = list(zip(sheet.records, sheet.places, strict=True))
    labels = [label_of(record, label_column, place) for record, place in located]
    classes = [
        _class_of(label, item, name, task, place)
        for label, item, place in zip(labels, inputs, sheet.places, strict=True)
    ]
    spoken = [languages.language_of(record, place) for record, place in located]
    kept = unique_indices(inputs, labels)
    if len(kept) < len(inputs):
        repeats = console.count(len(inputs) - len(kept), "row")
        console.note(f"note: {repeats} left out that repeat text and label of another")
    validate_sample_size(len(kept))
    if task.kind == "multiple_choice" and len({vector_count(inputs[index]) for index in kept}) > 1:
        raise DataError("the texts have different numbers of choices; calibrate with texts that have as many each")
    return _Rows(
        [inputs[index] for index in kept],
        np.array([classes[index] for index in kept]),
        [spoken[index] for index in kept],
    )


def _class_of(label: str, item: Input, name: str, task: TaskSpec, place: str) -> int:
    """The number of a label in the task's order."""
    known = task.labels or tuple(map(str, range(vector_count(item))))
    if label not in known:
        raise DataError(f"{place} has the label {label!r}, but task {name!r} has {', '.join(known)}; correct it")
    return known.index(label)


def _logits(
    bundle: Bundle, name: str, rows: _Rows, threads: int | None
) -> tuple[NDArray[np.float64], list[str | None]]:
    """The head's logits of each text, (texts, labels), and the codes of their languages."""
    with console.spinner("loading the model"):
        from mtllm_edge.embedder import Embedder

        head = Head.load(bundle.path, bundle.manifest.tasks[name])
        embedder = Embedder.load(bundle, threads=threads)
    with embedder:
        texts = embedder.encode(rows.inputs, language=rows.languages)
        with progress_bar(len(texts)) as progress:
            pooled_VE = embedder.pool(texts, task=name, progress=progress)
    truncated, limit = sum(text.truncated for text in texts), bundle.manifest.encoder.max_tokens
    if truncated:
        console.note(f"note: {console.count(truncated, 'text')} longer than {limit} tokens lost the end")
    logits_VC = head.logits(pooled_VE)
    logits_NC = logits_VC.reshape(len(texts), -1) if head.kind == "multiple_choice" else logits_VC
    return logits_NC, [text.language for text in texts]
