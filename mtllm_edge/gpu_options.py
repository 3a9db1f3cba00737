"""`--gpu-layers`, as every command that loads a bundle has it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from mtllm_edge import render
from mtllm_edge.gpu import GpuLayers, GpuWarning, check_gpu_layers

_Command = TypeVar("_Command", bound=Callable[..., Any])


def gpu_layers_option(command: _Command) -> _Command:
    """Add the option, whose value comes as `gpu_layers`; what does not run on the GPU after all becomes a note."""

    @wraps(command)
    def noting(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            show = warnings.showwarning

            def note(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
                if issubclass(category, GpuWarning):
                    render.note(f"note: {message}")
                else:
                    show(message, category, *place, **more)

            warnings.simplefilter("always", GpuWarning)
            warnings.showwarning = note
            return command(*arguments, **options)

    option = click.option(
        "--gpu-layers",
        metavar="N",
        default="0",
        show_default=True,
        callback=_parse,
        help="Layers of the LLM that go to a GPU, or 'all', and the encoder with them; needs a llama.cpp for GPUs.",
    )
    return option(noting)  # type: ignore[return-value]


def _parse(_context: click.Context, _option: click.Parameter, value: str) -> GpuLayers:
    return check_gpu_layers(int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else value)
