"""`mtllm-edge verify`."""

from __future__ import annotations

from pathlib import Path

import click

from mtllm_edge import console
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.options import PATH
from mtllm_edge.diagnostics.deep_verify import run_in_child


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--deep", is_flag=True, help="Also load and run the bundle, in a child process.")
def verify(bundle: Path, *, deep: bool) -> None:
    """Compare every file of a bundle with its SHA-256 in the manifest."""
    opened = Bundle.open(bundle)
    with console.spinner("reading all files"):
        opened.verify()
    files = opened.manifest.files
    size = sum(file.size for file in files.values())
    summary = f"{console.count(len(files), 'file')}, {console.file_size(size)}, all as recorded"
    if deep:
        with console.spinner("running the bundle"):
            result = run_in_child(opened.path)
        summary += f"; {result.texts} texts ran in a child process in {result.seconds:.1f} s"
    click.echo(summary)
