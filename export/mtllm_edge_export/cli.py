"""The commands `export`, `export-translator` and `join`; heavy imports follow the check of the extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from rich.console import Console

from mtllm_edge.bundle.manifest import GgufQuantization, Manifest
from mtllm_edge.cli.views import parity_table
from mtllm_edge.console import file_size
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require
from mtllm_edge_train.library_errors import quiet_transformers

if TYPE_CHECKING:
    from mtllm_edge_export.encoders.spec import EncoderQuantization

EXPORT = ("torch", "transformers", "peft", "gguf", "onnx", "onnxruntime", "onnxscript")
_FOLDER = click.Path(path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _output(metavar: str, kind: str) -> Callable[[_Command], _Command]:
    """Return a decorator that adds `--out` and `--force`."""

    def decorate(command: _Command) -> _Command:
        force = f"Replace an existing {kind}, once the new one is complete."
        command = click.option("--force", is_flag=True, help=force)(command)
        return click.option("--out", type=_FOLDER, required=True, metavar=metavar, help="Folder to write.")(command)

    return decorate


def _choice(name: str, choices: tuple[str, ...], help: str) -> Callable[[_Command], _Command]:
    """Return a decorator that adds an option with these choices; the first is the default."""
    return click.option(name, type=click.Choice(choices), default=choices[0], show_default=True, help=help)


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@_output("BUNDLE", "bundle")
@_choice("--encoder-backend", ("ctranslate2", "onnx"), "Backend of the encoder: CTranslate2 or ONNX Runtime.")
@_choice("--encoder-quantization", ("int8", "float32"), "Type of the encoder's weights.")
@_choice(
    "--llm-backend",
    ("gguf", "onnx", "both"),
    "Backend of the LLM: GGUF for llama.cpp, ONNX for ONNX Runtime (small LLMs only), or both, of which the faster one "
    "runs.",
)
@click.option(
    "--llm-quantization",
    type=click.Choice([*get_args(GgufQuantization), "int8"]),
    help="Type of the LLM's weights.  [default: q8_0 in GGUF, int8 in ONNX, which also supports f32; with both, that "
    "of GGUF]",
)
@click.option(
    "--imatrix",
    "calibration",
    type=_FOLDER,
    metavar="TEXTS",
    help="File of calibration texts, one per line, in English or preceded by a language code and a tab. 4-bit "
    "quantization is most accurate for the weights that they use most.",
)
@click.option(
    "--llm-layers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the first N layers of the LLM, and show how many predictions that changes.",
)
@click.option(
    "--without-llm", is_flag=True, help="Write the trained parts and the source of the LLM; `join` completes them."
)
def export(checkpoint: Path, out: Path, *, without_llm: bool, **options: Any) -> None:
    """Export a trained CHECKPOINT as a bundle that runs without torch, and compare the two."""
    if without_llm:
        options = _options_of_parts(options)
    require("export", *EXPORT)
    quiet_transformers()
    from mtllm_edge_export.bundle import export_bundle, export_parts

    with _log_steps() as log:
        manifest = (export_parts if without_llm else export_bundle)(checkpoint, out, log=log, **options)
    _print_summary(manifest, out)


_NOT_WITH_PARTS = {
    "llm_backend": ("gguf", "--llm-backend", "join has this option"),
    "calibration": (None, "--imatrix", "join has no torch to run the texts through the LLM"),
    "encoder_backend": ("ctranslate2", "--encoder-backend onnx", "the encoder of parts is in CTranslate2"),
    "llm_layers": (None, "--llm-layers", "parts name the LLM as it was trained"),
}
"""Parameter -> its only value with `--without-llm`, the option, and the reason."""


def _options_of_parts(options: dict[str, Any]) -> dict[str, Any]:
    for name, (value, option, reason) in _NOT_WITH_PARTS.items():
        if options[name] != value:
            raise UsageError(f"--without-llm and {option} exclude each other: {reason}; leave out one of the two")
    options = {name: value for name, value in options.items() if name not in _NOT_WITH_PARTS}
    return options | {"llm_quantization": options["llm_quantization"] or "q8_0"}


@click.command()
@click.argument("parts", type=_FOLDER)
@_output("BUNDLE", "bundle")
@_choice(
    "--llm-backend",
    ("gguf", "both"),
    "Backend of the LLM: GGUF, or both GGUF and ONNX, of which the faster one runs; both require the extra [export].",
)
def join(parts: Path, out: Path, *, llm_backend: str, force: bool) -> None:
    """Complete PARTS from `export --without-llm` with the LLM that they name. GGUF alone requires no torch."""
    require("reference", "gguf")
    if llm_backend == "both":
        require("export", *EXPORT)
        quiet_transformers()
    from mtllm_edge_export.parts.join import join as join_parts

    with _log_steps() as log:
        manifest = join_parts(parts, out, add_onnx=llm_backend == "both", force=force, log=log)
    _print_summary(manifest, out)


@click.command("export-translator")
@click.argument("translator", type=_FOLDER)
@_output("FOLDER", "translator")
@_choice("--quantization", ("int8", "float32"), "Type of the weights.")
def export_translator(translator: Path, out: Path, *, quantization: EncoderQuantization, force: bool) -> None:
    """Export a trained TRANSLATOR to CTranslate2: the translate-test baseline of an MT-LLM."""
    require("export", "torch", "transformers")
    quiet_transformers()
    from mtllm_edge_export.translator import export_translator as write

    with _log_steps() as log:
        manifest = write(translator, out, quantization=quantization, force=force)
        log(f"{manifest.name} ({manifest.quantization}) saved to {out}")


@contextmanager
def _log_steps() -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line on stderr, above a spinner on a terminal."""
    console = Console(stderr=True, highlight=False)
    with console.status("working"):
        yield lambda step: console.print(step, markup=False, soft_wrap=True)


def _print_summary(manifest: Manifest, out: Path) -> None:
    """Print parity and file sizes."""
    console = Console(highlight=False)
    console.print(parity_table(manifest))
    for path, file in sorted(manifest.files.items(), key=lambda item: -item[1].size):
        console.print(f"{file_size(file.size):>10}  {path}", markup=False)
    total = sum(file.size for file in manifest.files.values())
    console.print(f"{file_size(total):>10}  {out}", markup=False, soft_wrap=True)
