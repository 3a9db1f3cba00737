"""The commands `export`, `export-translator`, `join`; the heavy imports wait until the extra is known to be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from mtllm_edge.bundle.manifest import EncoderBackend, Manifest
from mtllm_edge.console import file_size
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require

if TYPE_CHECKING:
    from mtllm_edge_export.bundle import LlmBackendOption, LlmQuantization
    from mtllm_edge_export.encoders.ctranslate2 import EncoderQuantization

EXPORT = ("torch", "transformers", "peft", "gguf", "onnx", "onnxruntime", "onnxscript")
_FOLDER = click.Path(path_type=Path)
_OUT = click.option("--out", type=_FOLDER, required=True, metavar="BUNDLE", help="Folder to write.")
_FORCE = click.option("--force", is_flag=True, help="Replace an existing bundle, once the new one is complete.")


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@_OUT
@click.option(
    "--encoder-backend",
    type=click.Choice(["ctranslate2", "onnx"]),
    default="ctranslate2",
    show_default=True,
    help="Form of the encoder: CTranslate2, or ONNX for ONNX Runtime.",
)
@click.option(
    "--encoder-quantization",
    type=click.Choice(["int8", "float32"]),
    default="int8",
    show_default=True,
    help="Type of the encoder's weights.",
)
@click.option(
    "--llm-backend",
    type=click.Choice(["gguf", "onnx", "both"]),
    default="gguf",
    show_default=True,
    help="Form of the LLM: GGUF for llama.cpp, or ONNX for ONNX Runtime if it is small. Of both, the faster one runs.",
)
@click.option(
    "--llm-quantization",
    type=click.Choice(["q8_0", "q4_0", "q4_k_m", "iq4_nl", "bf16", "f16", "f32", "int8"]),
    help="Type of the LLM's weights.  [default: q8_0 in GGUF, int8 in ONNX, which has f32 besides; of both, GGUF's]",
)
@click.option(
    "--imatrix",
    type=_FOLDER,
    metavar="TEXTS",
    help="File of texts, one a line, English or after a language code and a tab: weights that they use most lose least "
    "in 4 bits.",
)
@click.option(
    "--llm-layers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the LLM's first N layers only, and show how many answers that changes.",
)
@click.option(
    "--without-llm", is_flag=True, help="Write the trained parts and where the LLM comes from; `join` completes them."
)
@_FORCE
def export(
    checkpoint: Path,
    out: Path,
    *,
    encoder_backend: EncoderBackend,
    encoder_quantization: EncoderQuantization,
    llm_backend: LlmBackendOption,
    llm_quantization: LlmQuantization | None,
    imatrix: Path | None,
    llm_layers: int | None,
    without_llm: bool,
    force: bool,
) -> None:
    """Compile a trained CHECKPOINT into a bundle that runs without torch, and compare the two."""
    if without_llm and llm_backend != "gguf":
        raise UsageError(
            "parts come without an LLM in any form; leave out --without-llm or --llm-backend, which join has"
        )
    if without_llm and imatrix:
        raise UsageError("join has no torch, so it cannot read --imatrix texts; leave out one of the two")
    if without_llm and encoder_backend == "onnx":
        raise UsageError("parts have their encoder for CTranslate2; leave out --without-llm or --encoder-backend onnx")
    if without_llm and llm_layers is not None:
        raise UsageError("parts name their LLM as it was trained; leave out --without-llm or --llm-layers")
    require("export", *EXPORT)
    _quiet_transformers()
    from mtllm_edge_export.bundle import export_bundle, export_parts

    with _steps() as log:
        common: dict[str, Any] = {"encoder_quantization": encoder_quantization, "force": force, "log": log}
        if without_llm and llm_quantization != "int8":
            manifest = export_parts(checkpoint, out, llm_quantization=llm_quantization or "q8_0", **common)
        else:
            common |= {"encoder_backend": encoder_backend, "llm_backend": llm_backend}
            common |= {"calibration": imatrix, "llm_layers": llm_layers}
            manifest = export_bundle(checkpoint, out, llm_quantization=llm_quantization, **common)
    _summary(manifest, out)


@click.command()
@click.argument("parts", type=_FOLDER)
@_OUT
@click.option(
    "--llm-backend",
    type=click.Choice(["gguf", "both"]),
    default="gguf",
    show_default=True,
    help="Form of the LLM: GGUF, or both GGUF and ONNX, of which the faster one runs; this needs the extra [export].",
)
@_FORCE
def join(parts: Path, out: Path, *, llm_backend: str, force: bool) -> None:
    """Complete PARTS made by `export --without-llm` with the LLM that they name. Needs no torch for GGUF alone."""
    require("reference", "gguf")
    if llm_backend == "both":
        require("export", *EXPORT)
        _quiet_transformers()
    from mtllm_edge_export.parts.join import join as join_parts

    with _steps() as log:
        manifest = join_parts(parts, out, both_forms=llm_backend == "both", force=force, log=log)
    _summary(manifest, out)


@click.command("export-translator")
@click.argument("translator", type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, metavar="FOLDER", help="Folder to write.")
@click.option(
    "--quantization",
    type=click.Choice(["int8", "float32"]),
    default="int8",
    show_default=True,
    help="Type of the weights.",
)
@click.option("--force", is_flag=True, help="Replace an existing translator, once the new one is complete.")
def export_translator(translator: Path, out: Path, *, quantization: EncoderQuantization, force: bool) -> None:
    """Compile a trained TRANSLATOR for CTranslate2: the baseline that an MT-LLM is compared with."""
    require("export", "torch", "transformers")
    _quiet_transformers()
    from mtllm_edge_export.translator import export_translator as write

    with _steps() as log:
        manifest = write(translator, out, quantization=quantization, force=force)
        log(f"{manifest.name} ({manifest.quantization}) saved to {out}")


def _quiet_transformers() -> None:
    """Keep the libraries' own bars and warnings out of the command's output."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """Print a line on stderr as each step begins, with a spinner under them on a terminal."""
    console = Console(stderr=True, highlight=False)
    with console.status("working"):
        yield lambda step: console.print(step, markup=False, soft_wrap=True)


def _summary(manifest: Manifest, out: Path) -> None:
    """Parity and sizes."""
    console = Console(highlight=False)
    table = Table(title="against the torch stack", title_justify="left")
    for heading in ("part", "cosine, worst", "cosine, mean", "FVU", "vectors"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for row in manifest.parity:
        numbers = f"{row.cosine_min:.6f}", f"{row.cosine_mean:.6f}", f"{row.fvu:.2g}", str(row.samples)
        table.add_row(row.component, *numbers)
    console.print(table)
    for path, file in sorted(manifest.files.items(), key=lambda item: -item[1].size):
        console.print(f"{file_size(file.size):>10}  {path}", markup=False)
    total = sum(file.size for file in manifest.files.values())
    console.print(f"{file_size(total):>10}  {out}", markup=False, soft_wrap=True)
