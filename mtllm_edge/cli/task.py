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
from mtllm_edge.tasks import store

_CONVERTERS = "mtllm_edge.adapters"
"""Entry points that convert adapters to GGUF; the runtime does not import the exporter."""


@click.group()
def task() -> None:
    """List, add and remove the tasks of a bundle."""


@task.command("list")
@click.argument("bundle", type=PATH)
def list_tasks(bundle: Path) -> None:
    """Print the tasks of a BUNDLE, one per line: name, tab, kind and labels."""
    for name, part in Bundle.open(bundle).manifest.tasks.items():
        click.echo(f"{safe_text.printable(name)}\t{safe_text.printable(views.kind_and_labels(part.kind, part.labels))}")


@task.command("add")
@click.argument("bundle", type=PATH)
@click.argument("name")
@click.option(
    "--head",
    type=PATH,
    required=True,
    metavar="FILE",
    help="safetensors file with weight and optionally bias, in float32.",
)
@click.option("--label", "labels", multiple=True, metavar="LABEL", help="Label of a row of the weight; once per row.")
@click.option("--kind", type=click.Choice(get_args(Kind)), default="sequence", show_default=True, help="Kind of input.")
@click.option(
    "--adapter",
    type=PATH,
    metavar="PATH",
    help="LoRA adapter of the LLM for this task: a GGUF file, or a PEFT folder (extra [export]).",
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Divisor of the logits.")
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
    """Add the task NAME to a BUNDLE, with a head trained elsewhere on the bundle's vectors.

    The weight has a row per label and a column per dimension of the vectors; for multiple choice it has a single row,
    and there are no labels.
    """
    opened = Bundle.open(bundle)
    store.validate_task_name(opened, name, force=force)
    source = store.task_source(name, source_name((str(head),)), license)
    loaded = store.read_head(head, kind, labels, temperature)
    with _gguf_adapter(adapter, opened) as lora:
        store.add_task(opened, name, loaded, adapter=lora, source=source, force=force)
    console.note(f"task {name!r} is in {bundle}")


@contextmanager
def _gguf_adapter(adapter: Path | None, bundle: Bundle) -> Iterator[Path | None]:
    """Yield the GGUF file of an adapter; that of a PEFT folder is temporary."""
    if adapter is None or not adapter.is_dir():
        yield adapter
        return
    store.validate_adapter_support(bundle)
    require("export", "gguf")
    converters = entry_points(group=_CONVERTERS, name="peft")
    if not converters:
        raise UsageError("the adapter converter of mtllm-edge is not installed; install mtllm-edge again")
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "adapter.gguf"
        next(iter(converters)).load()(adapter, bundle.path / bundle.manifest.llm.file, converted)
        yield converted


@task.command("remove")
@click.argument("bundle", type=PATH)
@click.argument("name")
def remove(bundle: Path, name: str) -> None:
    """Remove the task NAME from a BUNDLE and delete its files."""
    store.remove_task(Bundle.open(bundle), name)
    console.note(f"task {name!r} was removed from {bundle}")
