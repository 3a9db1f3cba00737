"""The commands about a bundle's tasks: fit, and task list, add, remove."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import click

from mtllm_edge import language_options, render
from mtllm_edge.bundle import Bundle
from mtllm_edge.columns import LABEL_COLUMN, Columns, group_of, inputs_of, label_of
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require
from mtllm_edge.fitting import check_fit_kind, check_labels, fit_head, regressions, without_repeats
from mtllm_edge.folds import check_groups
from mtllm_edge.gpu import GpuLayers
from mtllm_edge.gpu_options import gpu_layers_option
from mtllm_edge.kinds import Kind
from mtllm_edge.sheets import read_sheet
from mtllm_edge.tasks import add_task, check_can_adapt, check_task_name, read_head, remove_task, task_source

_PATH = click.Path(path_type=Path)
_CONVERTERS = "mtllm_edge.adapters"
"""Entry points that turn adapters of other layouts into GGUF: the runtime imports no exporter."""
_SUFFIXES = (".csv", ".jsonl")
_licence = click.option(
    "--license",
    "licence",
    metavar="ID",
    help="Licence of the task, as an SPDX identifier, for the manifest; without it, none is claimed.",
)


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("files", metavar="FILES...", nargs=-1, required=True)
@click.option("-t", "--task", metavar="NAME", required=True, help="Name of the new task.")
@click.option("--text-column", metavar="NAME", help="Column that holds the text.  [default: text]")
@click.option("--label-column", metavar="NAME", default=LABEL_COLUMN, show_default=True, help="Column of the label.")
@click.option("--pair-column", metavar="NAME", help="Column of a pair's second text.  [default: text_pair]")
@click.option("--group-column", metavar="NAME", help="Column of what belongs together: a document, an author ...")
@language_options.lang
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; by default what suits.")
@gpu_layers_option
@_licence
@click.option("--force", is_flag=True, help="Replace a task of that name.")
@language_options.notes_on_languages
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
    licence: str | None,
    force: bool,
) -> None:
    """Learn a task from labelled texts, and add it to a BUNDLE.

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
    sheet = read_sheet(files, text_column=text_column)
    opened = Bundle.open(bundle)
    check_task_name(opened, task, force=force)
    source = task_source(task, _origin(files), licence)
    columns = Columns(pair_column)
    kind = columns.kind(sheet.records[0], files[0])
    check_fit_kind(kind)
    inputs = inputs_of(sheet, kind, columns)
    rows = [*zip(sheet.records, sheet.places, strict=True)]
    labels = [label_of(record, label_column, place) for record, place in rows]
    groups = None if group_column is None else [group_of(record, group_column, place) for record, place in rows]
    kept = without_repeats(inputs, labels)
    if len(kept) < len(inputs):
        render.note(
            f"note: {render.count(len(inputs) - len(kept), 'row')} left out that repeat text and label of another"
        )
    inputs, labels = [inputs[index] for index in kept], [labels[index] for index in kept]
    render.note(f"{render.count(len(labels), 'text')}: {render.counts(check_labels(labels))}")
    if groups is not None:
        groups = [groups[index] for index in kept]
        check_groups(labels, groups)
    with render.busy("loading the model"):
        from mtllm_edge.embedder import Embedder

        embedder = Embedder.load(opened, threads=threads, gpu_layers=gpu_layers)
    with embedder:
        encoded = embedder.encode(inputs, language=language)
        with render.counting(len(inputs)) as progress:
            pooled_NE = embedder.pool(encoded, progress=progress)
    truncated, limit = sum(text.truncated for text in encoded), opened.manifest.encoder.max_tokens
    if truncated:
        render.note(f"note: {render.count(truncated, 'text')} longer than {limit} tokens lost the end")
    with render.counting(regressions(labels, groups), "regressions") as progress:
        head, report = fit_head(pooled_NE, labels, kind, progress, groups)
    add_task(opened, task, head, source=source, force=force)
    render.show(render.fit_view(report))
    render.note(f"task {task!r} is in {bundle}; use it with: mtllm-edge classify -b {bundle} -t {task} ...")


@click.group()
def task() -> None:
    """List, add and remove the tasks of a bundle."""


@task.command("list")
@click.argument("bundle", type=_PATH)
def list_tasks(bundle: Path) -> None:
    """Print each task of a BUNDLE on a line: its name, and after a tab what it reads and its labels."""
    for name, part in Bundle.open(bundle).manifest.tasks.items():
        click.echo(f"{render.plain(name)}\t{render.plain(render.answers(part.kind, part.labels))}")


@task.command("add")
@click.argument("bundle", type=_PATH)
@click.argument("name")
@click.option(
    "--head", type=_PATH, required=True, metavar="FILE", help="safetensors in float32: weight, and maybe bias."
)
@click.option(
    "--label", "labels", multiple=True, metavar="LABEL", help="Label of a row of the weight; give one for each."
)
@click.option("--kind", type=click.Choice(get_args(Kind)), default="sequence", show_default=True, help="What it reads.")
@click.option(
    "--adapter",
    type=_PATH,
    metavar="PATH",
    help="LoRA that the LLM wears for this task: GGUF, or a folder of PEFT's (extra [export]).",
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="The logits are divided by it.")
@_licence
@click.option("--force", is_flag=True, help="Replace a task of that name.")
def add(
    bundle: Path,
    name: str,
    *,
    head: Path,
    labels: tuple[str, ...],
    kind: Kind,
    adapter: Path | None,
    temperature: float,
    licence: str | None,
    force: bool,
) -> None:
    """Add the task NAME to a BUNDLE: a head that was trained elsewhere on its vectors.

    The weight has a row per label and a column per dimension of the vectors; that of multiple choice has one row, which
    scores choices, and no labels.
    """
    opened = Bundle.open(bundle)
    check_task_name(opened, name, force=force)
    source = task_source(name, _origin((str(head),)), licence)
    read = read_head(head, kind, labels, temperature)
    with _in_gguf(adapter, opened) as lora:
        add_task(opened, name, read, adapter=lora, source=source, force=force)
    render.note(f"task {name!r} is in {bundle}")


def _origin(files: Sequence[str]) -> str:
    """What the manifest calls the files that a task came from."""
    names = [render.plain(Path(file).name) for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")


@contextmanager
def _in_gguf(adapter: Path | None, bundle: Bundle) -> Iterator[Path | None]:
    """An adapter's GGUF file; that of a folder is made for as long as the block runs."""
    if adapter is None or not adapter.is_dir():
        yield adapter
        return
    check_can_adapt(bundle)
    require("export", "gguf")
    converters = entry_points(group=_CONVERTERS, name="peft")
    if not converters:
        raise UsageError("the part of mtllm-edge that converts adapters is not installed; install mtllm-edge again")
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "adapter.gguf"
        next(iter(converters)).load()(adapter, bundle.path / bundle.manifest.llm.file, converted)
        yield converted


@task.command("remove")
@click.argument("bundle", type=_PATH)
@click.argument("name")
def remove(bundle: Path, name: str) -> None:
    """Take the task NAME out of a BUNDLE, and delete its files."""
    remove_task(Bundle.open(bundle), name)
    render.note(f"task {name!r} is no longer in {bundle}")
