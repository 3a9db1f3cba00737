"""Options and preparation shared by the training commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import EXTRAS, require
from mtllm_edge.files.columns import Columns
from mtllm_edge.safe_text import one_line
from mtllm_edge_train.checkpoints.config import LlmConfig, LoraConfig
from mtllm_edge_train.library_errors import quiet_transformers
from mtllm_edge_train.training import distributed

if TYPE_CHECKING:
    from mtllm_edge_train.training.settings import LoopSettings
    from mtllm_edge_train.training.stage import Stage

_Command = TypeVar("_Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def prepare() -> None:
    """Check the extra, and disable the progress bars and warnings of the libraries.

    Raises:
        UsageError: The extra is not installed.
    """
    require("train", *EXTRAS["train"])
    configure_openmp()
    quiet_transformers()


def options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Combine options into one decorator, in the order of `--help`."""

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def option(name: str, default: Any, help_text: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """Define an option with a default, which `--help` shows."""
    return click.option(name, default=default, show_default=default is not None, help=help_text, **attributes)


OUTPUT = options(
    click.option("--out", type=PATH, required=True, metavar="CHECKPOINT", help="Folder to write, or to resume."),
    option("--name", None, "Name of the checkpoint; by default that of the folder."),
    click.option("--force", is_flag=True, help="Replace an existing checkpoint."),
)
SOURCES = click.option(
    "--source",
    "origins",
    type=(str, str, str),
    multiple=True,
    metavar="PART NAME LICENSE",
    help="Origin of a part, such as: encoder facebook/nllb-200-distilled-600M CC-BY-NC-4.0. May be repeated; exported "
    "bundles list it.",
)
LLM = options(
    click.option("--llm", required=True, metavar="SOURCE", help="Folder, GGUF file or hub id of the LLM."),
    option("--layers", None, "Keep this many of the first layers; by default all.", type=click.IntRange(min=1)),
    option("--attention", "causal", "Attention of the LLM.", type=click.Choice(["causal", "bidirectional"])),
)
_LORA = LoraConfig()
LORA = options(
    option("--lora-rank", _LORA.rank, "Rank of the adapters.", type=click.IntRange(min=1)),
    option("--lora-alpha", _LORA.alpha, "Scale of the adapters, times their rank."),
    option("--lora-dropout", _LORA.dropout, "Dropout before the adapters.", type=click.FloatRange(0, 1, max_open=True)),
)
TEXT_COLUMN = option(
    "--text-column", None, "Text column of tables; by default 'text' or the only column.", metavar="NAME"
)
LABEL_COLUMN = option("--label-column", "label", "Label column of tables.", metavar="NAME")
SECOND_COLUMNS = options(
    option("--pair-column", None, "Column of a pair's second text; by default 'text_pair', if there.", metavar="NAME"),
    option(
        "--choices-column",
        (),
        "Column of the choices, a list; by default 'choices', if there. Given several times, each is one choice.",
        metavar="NAME",
        multiple=True,
    ),
)


def optimization(batch_size: int, learning_rate: float) -> Callable[[_Command], _Command]:
    """Define the options of the training loop, with these defaults."""
    return options(
        option("--batch-size", batch_size, "Texts per step, over all processes.", type=click.IntRange(min=1)),
        option(
            "--accumulate",
            1,
            "Split each step into this many forward passes: less memory, the same result.",
            type=click.IntRange(min=1),
        ),
        option("--learning-rate", learning_rate, "Peak learning rate of the adapters.", type=click.FloatRange(0)),
        option("--warmup", 0.01, "Fraction of the steps with a rising learning rate.", type=click.FloatRange(0, 1)),
        option("--save-every", 200, "Steps between saves to resume from.", type=click.IntRange(min=1)),
        option("--seed", 0, "Random seed of order and initialization.", type=click.IntRange(min=0)),
        option("--device", None, "cpu or cuda; by default cuda if available."),
        click.option(
            "--gradient-checkpointing",
            is_flag=True,
            help="Recompute activations: less memory for a third more time, for large LLMs.",
        ),
        option("--dtype", "bfloat16", "Type of the matrix products.", type=click.Choice(["bfloat16", "float32"])),
        option(
            "--base-dtype",
            None,
            "Type of the frozen weights; by default nf4 (4 bits, the LLM only) on CUDA, elsewhere as --dtype.",
            type=click.Choice(["nf4", "bfloat16", "float32"]),
        ),
    )


def absolute_source(source: str) -> str:
    """Make a local path absolute, and leave a hub id as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def columns_of(options: dict[str, Any]) -> Columns:
    """Return the columns of second texts and choices."""
    return Columns(options["pair_column"], options["choices_column"])


def model_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments `llm`, `lora` and `sources` of a stage."""
    return {
        "llm": LlmConfig(
            source=absolute_source(options["llm"]), layers=options["layers"], attention=options["attention"]
        ),
        "lora": LoraConfig(rank=options["lora_rank"], alpha=options["lora_alpha"], dropout=options["lora_dropout"]),
        "sources": [WeightSource(part=part, name=name, license=license) for part, name, license in options["origins"]],
    }


def run_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a stage that all stages share."""
    return {"name": options["name"] or options["out"].name, "settings": loop_settings(options)}


def run(stage: Stage, options: dict[str, Any]) -> None:
    """Run a stage; `--out` is its folder."""
    from mtllm_edge_train.training.loop import run_stage

    run_stage(stage, options["out"], force=options["force"], log=log)


def loop_settings(options: dict[str, Any]) -> LoopSettings:
    """Return the settings of the training loop."""
    from mtllm_edge_train.training.settings import LoopSettings

    names = ("batch_size", "accumulate", "learning_rate", "warmup", "save_every", "seed", "dtype")
    device = available_device(options["device"])
    return LoopSettings(
        device=device,
        base_dtype=base_dtype(options["base_dtype"], options["dtype"], device),
        gradient_checkpointing=options["gradient_checkpointing"],
        **{name: options[name] for name in names},
    )


def base_dtype(base_dtype: str | None, dtype: str, device: str) -> str | None:
    """Return the type of the frozen weights: `--base-dtype` or its default."""
    from mtllm_edge_train.models.nf4 import check_nf4

    if base_dtype == "bfloat16" and dtype == "float32":
        raise UsageError("--base-dtype bfloat16 cannot be multiplied in --dtype float32; choose the same for both")
    base_dtype = base_dtype or ("nf4" if device.startswith("cuda") else None)
    if base_dtype == "nf4":
        check_nf4(device)
    return base_dtype


def available_device(device: str | None) -> str:
    """Return the device of `--device`, after a check; None chooses cuda if available.

    Raises:
        UsageError: The device cannot be used.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        distributed.join_process_group(torch.device(device).type)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UsageError(f"--device {device} cannot be used here ({one_line(reason)}); choose cpu") from None
    return device


def log(line: str) -> None:
    """Print a line on stderr, in the first of several processes only."""
    if distributed.process_rank() == 0:
        click.echo(line, err=True)
