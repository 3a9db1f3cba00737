"""`mtllm-edge package`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtllm_edge import console
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.options import PATH

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--name", required=True, help="The name by which the installed bundle is found.")
@click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="Where the wheel goes.")
@click.option("--version", default="1.0", show_default=True, help="The wheel's version.")
@click.option("--force", is_flag=True, help="Replace an existing wheel.")
def package(bundle: Path, *, name: str, output: Path, version: str, force: bool) -> None:
    """Write a BUNDLE as a wheel that pip installs; it is used by its name then, without a folder."""
    from mtllm_edge.bundle.wheel import write_wheel

    opened = Bundle.open(bundle)
    with console.spinner("writing the wheel"):
        wheel = write_wheel(opened, name, output, version=version, force=force)
    click.echo(wheel)
    for source in opened.manifest.sources:
        if source.is_non_commercial:
            console.note(f"note: {source.part} ({source.name}) is under {source.license}: NON-COMMERCIAL USE ONLY")
    if not opened.manifest.sources:
        console.note("note: the bundle names no source and no license; say under which terms it may be used")
