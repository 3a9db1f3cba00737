"""`mtllm-edge fit`."""

from __future__ import annotations

from pathlib import Path

import click

from mtllm_edge import console
from mtllm_edge.backends.probing.offload import GpuLayers
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli import options, views, warnings
from mtllm_edge.cli.options import PATH, gpu_layers_option, license_option, source_name
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require
from mtllm_edge.files.columns import LABEL_COLUMN, Columns, group_of, inputs_of, label_of
from mtllm_edge.files.tables import read_table
from mtllm_edge.tasks.fitting import count_regressions, fit_head, prepare_examples, validate_fit_kind
from mtllm_edge.tasks.store import add_task, task_source, validate_task_name

_SUFFIXES = (".csv", ".jsonl")


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("files", metavar="FILES...", nargs=-1, required=True)
@click.option("-t", "--task", metavar="NAME", required=True, help="Name of the new task.")
@click.option("--text-column", metavar="NAME", help="Column that holds the text.  [default: text]")
@click.option("--label-column", metavar="NAME", default=LABEL_COLUMN, show_default=True, help="Column of the label.")
@click.option("--pair-column", metavar="NAME", help="Column of a pair's second text.  [default: text_pair]")
@click.option("--group-column", metavar="NAME", help="Column of what belongs together: a document, an author ...")
@options.language_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; by default what suits.")
@gpu_layers_option
@license_option
@click.option("--force", is_flag=True, help="Replace a task of that name.")
@warnings.print_language_warnings
def fit(
    bundle: Path,
    files: tuple[str, ...],
    *,
    task: str,
    text_column: str | None,
    label_column: str,
    pair_column: str | None,
    group_column: str | None,
    language: str | None,
    threads: int | None,
    gpu_layers: GpuLayers,
    license: str | None,
    force: bool,
) -> None:
    """Learn a task from labeled texts, and add it to a BUNDLE.

    FILES are .csv or .jsonl, with the columns 'text' and 'label', for pairs also 'text_pair'. A logistic regression is
    fitted to the bundle's vectors of the texts, in any languages that it knows; the model itself is not trained. What
    is shown was found by cross-validation: each text is judged by a regression that has not seen it, nor, with
    --group-column, any other text of its group.
    """
    require("fit", "sklearn")
    other = [name for name in files if Path(name).suffix.lower() not in _SUFFIXES]
    if other:
        raise UsageError(
            f"{other[0]} should end in {' or '.join(_SUFFIXES)}: a file with a text and a label in each row"
        )
    sheet = read_table(files, text_column=text_column)
    opened = Bundle.open(bundle)
    validate_task_name(opened, task, force=force)
    source = task_source(task, source_name(files), license)
    columns = Columns(pair_column)
    kind = columns.kind(sheet.records[0], files[0])
    validate_fit_kind(kind)
    inputs = inputs_of(sheet, kind, columns)
    rows = [*zip(sheet.records, sheet.places, strict=True)]
    labels = [label_of(record, label_column, place) for record, place in rows]
    groups = None if group_column is None else [group_of(record, group_column, place) for record, place in rows]
    examples = prepare_examples(inputs, labels, groups)
    if duplicates := len(inputs) - len(examples.inputs):
        console.note(f"note: {console.count(duplicates, 'row')} left out that repeat text and label of another")
    inputs, labels = examples.inputs, examples.labels
    console.note(f"{console.count(len(labels), 'text')}: {console.counts(examples.counts)}")
    with console.spinner("loading the model"):
        from mtllm_edge.embedder import Embedder

        embedder = Embedder.load(opened, threads=threads, gpu_layers=gpu_layers)
    with embedder:
        encoded = embedder.encode(inputs, language=language)
        with progress_bar(len(inputs)) as progress:
            pooled_NE = embedder.pool(encoded, progress=progress)
    truncated, limit = sum(text.truncated for text in encoded), opened.manifest.encoder.max_tokens
    if truncated:
        console.note(f"note: {console.count(truncated, 'text')} longer than {limit} tokens lost the end")
    with progress_bar(count_regressions(labels, examples.groups), "regressions") as progress:
        head, report = fit_head(pooled_NE, labels, kind, progress, examples.groups)
    add_task(opened, task, head, source=source, force=force)
    console.print_stdout(views.fit_view(report))
    console.note(f"task {task!r} is in {bundle}; use it with: mtllm-edge classify -b {bundle} -t {task} ...")
