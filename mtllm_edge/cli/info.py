"""`mtllm-edge info`."""

from __future__ import annotations

from pathlib import Path

import click

from mtllm_edge import console
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli import views
from mtllm_edge.cli.options import PATH


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest unchanged.")
def info(bundle: Path, *, as_json: bool) -> None:
    """Show the parts, tasks and licenses of a bundle."""
    manifest = Bundle.open(bundle).manifest
    if as_json:
        click.echo(manifest.to_json(), nl=False)
    else:
        console.print_stdout(views.manifest_view(manifest))
