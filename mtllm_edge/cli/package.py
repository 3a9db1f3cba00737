"""`mtllm-edge package`."""

from __future__ import annotations

from pathlib import Path

import click

from mtllm_edge import console
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.options import PATH


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--name", required=True, help="Name of the installed bundle.")
@click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="Folder of the wheel.")
@click.option("--version", default="1.0", show_default=True, help="Version of the wheel.")
@click.option("--force", is_flag=True, help="Replace an existing wheel.")
def package(bundle: Path, *, name: str, output: Path, version: str, force: bool) -> None:
    """Write a BUNDLE as a wheel for pip; the installed bundle is used by its name instead of a folder."""
    from mtllm_edge.bundle.wheel import write_wheel

    opened = Bundle.open(bundle)
    with console.spinner("writing the wheel"):
        wheel = write_wheel(opened, name, output, version=version, force=force)
    click.echo(wheel)
    for source in opened.manifest.sources:
        if source.is_non_commercial:
            console.note(f"note: {source.part} ({source.name}) is under {source.license}: NON-COMMERCIAL USE ONLY")
    if not opened.manifest.sources:
        console.note("note: the bundle has no sources and licenses; state its terms of use yourself")
