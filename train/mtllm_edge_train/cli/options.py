"""Options that the training commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import UsageError
from mtllm_edge.files.columns import Columns
from mtllm_edge_train.training import distributed

if TYPE_CHECKING:
    from mtllm_edge_train.checkpoints.config import LlmConfig, LoraConfig
    from mtllm_edge_train.training.settings import LoopSettings


_Command = TypeVar("_Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator, in the order of `--help`."""

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def option(name: str, default: Any, help_text: str, **more: Any) -> Callable[[_Command], _Command]:
    """An option with a default, shown in `--help`."""
    return click.option(name, default=default, show_default=default is not None, help=help_text, **more)


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
    help="What a part comes from, such as: encoder facebook/nllb-200-distilled-600M CC-BY-NC-4.0. May be repeated; "
    "exported bundles carry it.",
)
LLM = options(
    click.option("--llm", required=True, metavar="SOURCE", help="Folder, GGUF file or hub id of the LLM."),
    option("--layers", None, "Keep this many of the first layers; by default all.", type=click.IntRange(min=1)),
    option("--attention", "causal", "How the LLM reads.", type=click.Choice(["causal", "bidirectional"])),
)
LORA = options(
    option("--lora-rank", 16, "Rank of the adapters.", type=click.IntRange(min=1)),
    option("--lora-alpha", 32.0, "Scale of the adapters, times their rank."),
    option("--lora-dropout", 0.05, "Dropout before the adapters.", type=click.FloatRange(0, 1, max_open=True)),
)
TEXT_COLUMN = option(
    "--text-column", None, "Column of csv, jsonl and parquet files; by default 'text' or the only one.", metavar="NAME"
)
LABEL_COLUMN = option("--label-column", "label", "Likewise, of the labels.", metavar="NAME")
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
DEVICE = option("--device", None, "cpu or cuda; by default cuda where there is one.")


def optimization(batch_size: int, learning_rate: float) -> Callable[[_Command], _Command]:
    """The options of the optimizer."""
    return options(
        option("--batch-size", batch_size, "Texts per step, of all processes together.", type=click.IntRange(min=1)),
        option(
            "--accumulate",
            1,
            "Read a step's texts in this many parts: less memory, the same result.",
            type=click.IntRange(min=1),
        ),
        option("--learning-rate", learning_rate, "Of the adapters, at its peak.", type=click.FloatRange(0)),
        option("--warmup", 0.01, "Fraction of the steps.", type=click.FloatRange(0, 1)),
        option("--save-every", 200, "Steps between saves to resume from.", type=click.IntRange(min=1)),
        option("--seed", 0, "Decides order and initialisation.", type=click.IntRange(min=0)),
        DEVICE,
        click.option(
            "--gradient-checkpointing", is_flag=True, help="Less memory for a third more time, for large LLMs."
        ),
        option("--dtype", "bfloat16", "Of the matrix products.", type=click.Choice(["bfloat16", "float32"])),
        option(
            "--base-dtype",
            None,
            "Of the frozen weights; by default nf4 (the LLM's alone, in 4 bits) on CUDA, elsewhere as --dtype.",
            type=click.Choice(["nf4", "bfloat16", "float32"]),
        ),
    )


def absolute_source(source: str) -> str:
    """A local path survives a change of folder; a hub id stays as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def columns_of(options: dict[str, Any]) -> Columns:
    """The columns that the options name."""
    return Columns(options["pair_column"], options["choices_column"])


def llm_config(options: dict[str, Any]) -> LlmConfig:
    """The LLM that the options describe."""
    from mtllm_edge_train.checkpoints.config import LlmConfig

    return LlmConfig(source=absolute_source(options["llm"]), layers=options["layers"], attention=options["attention"])


def lora_config(options: dict[str, Any]) -> LoraConfig:
    """The LoRA that the options describe."""
    from mtllm_edge_train.checkpoints.config import LoraConfig

    return LoraConfig(rank=options["lora_rank"], alpha=options["lora_alpha"], dropout=options["lora_dropout"])


def sources_of(options: dict[str, Any]) -> list[WeightSource]:
    """Origin and license of the weights that the options name."""
    return [WeightSource(part=part, name=name, license=license_id) for part, name, license_id in options["origins"]]


def loop_settings(options: dict[str, Any]) -> LoopSettings:
    """The settings of the training loop that the options describe."""
    from mtllm_edge_train.training.settings import LoopSettings

    names = (
        *("batch_size", "accumulate", "learning_rate", "warmup", "save_every", "seed"),
        *("dtype", "gradient_checkpointing"),
    )
    device = chosen_device(options["device"])
    return LoopSettings(
        device=device,
        base_dtype=base_dtype(options["base_dtype"], options["dtype"], device),
        **{name: options[name] for name in names},
    )


def base_dtype(asked: str | None, dtype: str, device: str) -> str | None:
    """The type of the frozen weights."""
    from mtllm_edge_train.models.nf4 import check_nf4

    if asked == "bfloat16" and dtype == "float32":
        raise UsageError("--base-dtype bfloat16 cannot be multiplied in --dtype float32; choose the same for both")
    chosen = asked or ("nf4" if device.startswith("cuda") else None)
    if chosen == "nf4":
        check_nf4(device)
    return chosen


def chosen_device(device: str | None) -> str:
    """What `--device` names; cuda where it names nothing and there is one.

    Raises:
        UsageError: It cannot be used here.
    """
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        distributed.join(torch.device(chosen).type)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UsageError(f"--device {chosen} cannot be used here ({reason}); choose cpu") from None
    return chosen
