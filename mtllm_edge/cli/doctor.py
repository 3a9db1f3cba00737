"""`mtllm-edge doctor`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from mtllm_edge import console
from mtllm_edge.backends.probing.gpu import GpuLayers
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.options import PATH, gpu_layers_option
from mtllm_edge.diagnostics.doctor import diagnose
from mtllm_edge.errors import EngineError, UsageError


@click.command()
@click.argument("bundle", type=PATH, required=False)
@gpu_layers_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(bundle: Path | None, *, gpu_layers: GpuLayers, as_json: bool) -> None:
    """Show what is installed and whether it works on this machine.

    With a BUNDLE, its LLM is tried in a child process, with --gpu-layers also on the GPU, and the settings that work
    are shown.
    """
    if bundle is None and gpu_layers != 0:
        raise UsageError("--gpu-layers tries a model on a GPU; name its BUNDLE, too")
    opened = None if bundle is None else Bundle.open(bundle)
    with console.spinner("testing the engines"):
        report = diagnose(opened, gpu_layers)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        console.print_stdout(console.facts_table(report.facts()))
        for advice in report.advice:
            click.echo(f"\n{advice}")  # not wrapped, so that it can be copied
    if report.faults:
        raise EngineError("; ".join(report.faults))
