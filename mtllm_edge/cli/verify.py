"""`mtllm-edge verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtllm_edge import console
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.options import PATH
from mtllm_edge.diagnostics.deep_verify import run_in_child

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--deep", is_flag=True, help="Also load and run it, in a process of its own.")
def verify(bundle: Path, *, deep: bool) -> None:
    """Compare every file of a model bundle with its recorded SHA-256."""
    opened = Bundle.open(bundle)
    with console.spinner("reading every file"):
        opened.verify()
    files = opened.manifest.files
    size = sum(file.size for file in files.values())
    summary = f"{console.count(len(files), 'file')}, {console.file_size(size)}, all as recorded"
    if deep:
        with console.spinner("running it in a child process"):
            result = run_in_child(opened.path)
        summary += f"; {result.texts} texts ran in a child process in {result.seconds:.1f} s"
    click.echo(summary)
