"""`mtllm-edge task`: list, add and remove the tasks of a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import click

from mtllm_edge import console, safe_text
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli import views
from mtllm_edge.cli.options import PATH, license_option, source_name
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require
from mtllm_edge.inputs import Kind
from mtllm_edge.tasks.store import (
    add_task,
    read_head,
    remove_task,
    task_source,
    validate_adapter_support,
    validate_task_name,
)

_CONVERTERS = "mtllm_edge.adapters"
"""Entry points that turn adapters of other layouts into GGUF: the runtime imports no exporter."""


@click.group()
def task() -> None:
    """List, add and remove the tasks of a bundle."""


@task.command("list")
@click.argument("bundle", type=PATH)
def list_tasks(bundle: Path) -> None:
    """Print each task of a BUNDLE on a line: its name, and after a tab what it reads and its labels."""
    for name, part in Bundle.open(bundle).manifest.tasks.items():
        click.echo(f"{safe_text.printable(name)}\t{safe_text.printable(views.answers(part.kind, part.labels))}")


@task.command("add")
@click.argument("bundle", type=PATH)
@click.argument("name")
@click.option(
    "--head", type=PATH, required=True, metavar="FILE", help="safetensors in float32: weight, and maybe bias."
)
@click.option(
    "--label", "labels", multiple=True, metavar="LABEL", help="Label of a row of the weight; give one for each."
)
@click.option("--kind", type=click.Choice(get_args(Kind)), default="sequence", show_default=True, help="What it reads.")
@click.option(
    "--adapter",
    type=PATH,
    metavar="PATH",
    help="LoRA that the LLM wears for this task: GGUF, or a folder of PEFT's (extra [export]).",
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="The logits are divided by it.")
@license_option
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
    license: str | None,
    force: bool,
) -> None:
    """Add the task NAME to a BUNDLE: a head that was trained elsewhere on its vectors.

    The weight has a row per label and a column per dimension of the vectors; that of multiple choice has one row, which
    scores choices, and no labels.
    """
    opened = Bundle.open(bundle)
    validate_task_name(opened, name, force=force)
    source = task_source(name, source_name((str(head),)), license)
    read = read_head(head, kind, labels, temperature)
    with _in_gguf(adapter, opened) as lora:
        add_task(opened, name, read, adapter=lora, source=source, force=force)
    console.note(f"task {name!r} is in {bundle}")


@contextmanager
def _in_gguf(adapter: Path | None, bundle: Bundle) -> Iterator[Path | None]:
    """An adapter's GGUF file; that of a folder is made for as long as the block runs."""
    if adapter is None or not adapter.is_dir():
        yield adapter
        return
    validate_adapter_support(bundle)
    require("export", "gguf")
    converters = entry_points(group=_CONVERTERS, name="peft")
    if not converters:
        raise UsageError("the part of mtllm-edge that converts adapters is not installed; install mtllm-edge again")
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "adapter.gguf"
        next(iter(converters)).load()(adapter, bundle.path / bundle.manifest.llm.file, converted)
        yield converted


@task.command("remove")
@click.argument("bundle", type=PATH)
@click.argument("name")
def remove(bundle: Path, name: str) -> None:
    """Take the task NAME out of a BUNDLE, and delete its files."""
    remove_task(Bundle.open(bundle), name)
    console.note(f"task {name!r} is no longer in {bundle}")
