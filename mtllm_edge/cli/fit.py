"""`mtllm-edge fit`."""

from __future__ import annotations

from pathlib import Path

import click

from mtllm_edge import console
from mtllm_edge.backends.probing.gpu import GpuLayers
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.classifier import Classifier
from mtllm_edge.cli import options, views
from mtllm_edge.cli.labeled import note_repeats, read_labeled
from mtllm_edge.cli.progress import progress_bars
from mtllm_edge.embedder import Embedder
from mtllm_edge.extras import require
from mtllm_edge.files.columns import Columns
from mtllm_edge.tasks.fitting import prepare_examples, validate_fit_kind
from mtllm_edge.tasks.store import task_source, validate_task_name


@click.command()
@click.argument("bundle", type=options.PATH)
@options.labeled_files_options
@click.option("-t", "--task", metavar="NAME", required=True, help="Name of the new task.")
@click.option("--pair-column", metavar="NAME", help="Column of a pair's second text.  [default: text_pair]")
@click.option("--group-column", metavar="NAME", help="Column of the group of related texts: a document, an author ...")
@options.language_option
@options.threads_option
@options.gpu_layers_option
@options.license_option
@click.option("--force", is_flag=True, help="Replace a task of that name.")
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
    """Fit a task to labeled texts and add it to a BUNDLE.

    FILES are .csv or .jsonl with the columns 'text' and 'label', for pairs also 'text_pair'. The task is a calibrated
    logistic regression on the bundle's vectors of the texts, in any of its languages; the model itself is not trained.
    The scores are those of cross-validation: each text is classified by a regression that was fitted without it and,
    with --group-column, without all texts of its group.
    """
    require("fit", "sklearn")
    table = read_labeled(files, text_column)
    opened = Bundle.open(bundle)
    validate_task_name(opened, task, force=force)
    source = options.source_name(files)
    task_source(task, source, license)
    columns = Columns(pair_column)
    kind = columns.kind(table.rows[0], files[0])
    validate_fit_kind(kind)
    inputs, labels = table.inputs(kind, columns), table.words(label_column, "label")
    groups = None if group_column is None else table.words(group_column, "group")
    examples = prepare_examples(inputs, labels, groups)
    note_repeats(len(inputs) - len(examples.inputs))
    console.note(f"{console.count(len(examples.inputs), 'text')}: {console.counts(examples.counts)}")
    with console.spinner("loading the model"):
        classifier = Classifier(Embedder.load(opened, threads=threads, gpu_layers=gpu_layers), heads={})
    with classifier, progress_bars() as progress:
        classifier.fit(inputs, labels, language=language, groups=groups, progress=progress)
    classifier.save_task(task, source=source, license=license, force=force)
    console.print_stdout(views.fit_view(classifier.report_))
    console.note(f"task {task!r} is in {bundle}; use it with: mtllm-edge classify -b {bundle} -t {task} ...")
