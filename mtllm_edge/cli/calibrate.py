"""`mtllm-edge calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge import console
from mtllm_edge.bundle.manifest import UNSURE, TaskSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.bundle.update import validate_writable
from mtllm_edge.cli import options, views
from mtllm_edge.cli.labeled import note_repeats, read_labeled
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.embedder import Embedder, warn_truncated
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.columns import Columns
from mtllm_edge.files.tables import Table
from mtllm_edge.inputs import Input, vector_count
from mtllm_edge.jobs.row_languages import RowLanguages
from mtllm_edge.tasks.calibration import resolve_abstention, select_temperatures
from mtllm_edge.tasks.calibration_report import fit_calibration, validate_sample_size
from mtllm_edge.tasks.fitting import unique_indices
from mtllm_edge.tasks.head import Head
from mtllm_edge.tasks.store import update_calibration


@click.command()
@click.argument("bundle", type=options.PATH)
@options.labeled_files_options
@options.task_option
@options.second_columns_options
@options.language_option
@options.language_column_option
@click.option("--threshold", type=options.PROBABILITY, metavar="P", help="Abstain below this confidence; 0 is never.")
@click.option(
    "--target-accuracy",
    type=options.PROBABILITY,
    metavar="A",
    help="Find the lowest threshold above which this share of the texts is classified correctly.",
)
@click.option("--abstain", metavar="LABEL", help=f"Label of abstentions; by default {UNSURE!r}.")
@options.threads_option
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
    """Calibrate the confidence of a task in a BUNDLE by temperature scaling.

    FILES are .csv or .jsonl with the columns 'text' and 'label', and texts that the task was not trained on. One
    temperature is fitted for the task, and one for each language with 50 texts or more; no label changes. The scores
    are those of cross-validation: temperatures and threshold are applied to texts that they were not fitted to.
    """
    if threshold is not None and target_accuracy is not None:
        raise UsageError("--threshold sets the threshold and --target-accuracy chooses it; give one of them")
    table = read_labeled(files, text_column)
    opened = Bundle.open(bundle)
    validate_writable(opened)
    name = opened.task_name(task)
    spec = opened.manifest.tasks[name]
    limit, _ = resolve_abstention(spec, threshold if target_accuracy is None else target_accuracy, abstain)
    languages = RowLanguages(opened.manifest, language, language_column)
    inputs = table.inputs(spec.kind, Columns(pair_column, choices_columns))
    texts, classes_N, names = _distinct(table, inputs, table.words(label_column, "label"), name, spec, languages)
    logits_NC, codes = _logits(opened, name, texts, names, threads)
    temperatures_N = select_temperatures(spec, codes)
    report = fit_calibration(
        logits_NC, classes_N, codes, temperatures_N, threshold=limit or None, target_accuracy=target_accuracy
    )
    calibrated = msgspec.structs.replace(
        spec,
        temperature=report.fitted.temperature,
        temperatures=dict(report.fitted.temperatures),
        threshold=report.threshold or None,
        abstain=spec.abstain if abstain is None else abstain,
    )
    update_calibration(opened, name, calibrated)
    console.print_stdout(views.calibration_view(report, calibrated.abstain or UNSURE))
    console.note(f"task {name!r} of {bundle} is calibrated")


def _distinct(
    table: Table, inputs: Sequence[Input], labels: Sequence[str], name: str, task: TaskSpec, languages: RowLanguages
) -> tuple[list[Input], NDArray[np.int64], list[str | None]]:
    """Return the distinct texts of a table, the classes of their labels, and their languages as named there."""
    rows = zip(labels, inputs, table.places, table.map(languages.language_of), strict=True)
    parsed = [(item, _class_of(label, item, name, task, place), language) for label, item, place, language in rows]
    indices = unique_indices(inputs, labels)
    note_repeats(len(inputs) - len(indices))
    validate_sample_size(len(indices))
    texts, classes, codes = zip(*(parsed[index] for index in indices), strict=True)
    if task.kind == "multiple_choice" and len(set(map(vector_count, texts))) > 1:
        raise DataError("the texts have different numbers of choices; calibrate with texts that have as many each")
    return [*texts], np.array(classes), [*codes]


def _class_of(label: str, item: Input, name: str, task: TaskSpec, place: str) -> int:
    """Return the index of a label in the labels of the task."""
    labels = task.labels or tuple(map(str, range(vector_count(item))))
    if label not in labels:
        raise DataError(f"{place} has the label {label!r}, but task {name!r} has {', '.join(labels)}; correct it")
    return labels.index(label)


def _logits(
    bundle: Bundle, name: str, texts: list[Input], languages: list[str | None], threads: int | None
) -> tuple[NDArray[np.float64], list[str | None]]:
    """Return the logits of each text, (texts, labels), and the codes of their languages."""
    with console.spinner("loading the model"):
        head = Head.load(bundle.path, bundle.manifest.tasks[name])
        embedder = Embedder.load(bundle, threads=threads)
    with embedder:
        encoded = embedder.encode(texts, language=languages)
        with progress_bar(len(encoded)) as progress:
            pooled_VE = embedder.pool(encoded, task=name, progress=progress)
    warn_truncated(encoded, bundle.manifest.encoder.max_tokens)
    logits_VC = head.logits(pooled_VE)
    logits_NC = logits_VC.reshape(len(encoded), -1) if head.kind == "multiple_choice" else logits_VC
    return logits_NC, [text.language for text in encoded]
