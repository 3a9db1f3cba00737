"""`mtllm-edge verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtllm_edge import console
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.options import PATH
from mtllm_edge.diagnostics.deep_verify import try_bundle

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--deep", is_flag=True, help="Also load and run it, in a process of its own.")
def verify(bundle: Path, *, deep: bool) -> None:
    """Compare every file of a model bundle with its recorded SHA-256."""
    opened = Bundle.open(bundle)
    with console.busy("reading every file"):
        opened.verify()
    files = opened.manifest.files
    size = sum(file.size for file in files.values())
    summary = f"{console.count(len(files), 'file')}, {console.megabytes(size)}, all as recorded"
    if deep:
        with console.busy("running it in a child process"):
            trial = try_bundle(opened.path)
        summary += f"; {trial.texts} texts ran in a child process in {trial.seconds:.1f} s"
    click.echo(summary)
