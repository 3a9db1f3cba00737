"""The commands `train adapt`, `train finetune`, `train distill` and `train evaluate`.

The heavy imports wait until the extra is known to be there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtllm_edge.columns import Columns
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import EXTRAS, require
from mtllm_edge.machine import calm_openmp
from mtllm_edge.manifest import MAX_STRIDE, Source
from mtllm_edge_train import processes

if TYPE_CHECKING:
    from mtllm_edge_train.config import LlmConfig, LoraConfig
    from mtllm_edge_train.loop import LoopSettings

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator, in the order of `--help`."""

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _option(name: str, default: Any, help_text: str, **more: Any) -> Callable[[_Command], _Command]:
    return click.option(name, default=default, show_default=default is not None, help=help_text, **more)


_OUTPUT = _options(
    click.option("--out", type=_PATH, required=True, metavar="CHECKPOINT", help="Folder to write, or to resume."),
    _option("--name", None, "Name of the checkpoint; by default that of the folder."),
    click.option("--force", is_flag=True, help="Replace an existing checkpoint."),
)
_SOURCES = click.option(
    "--source",
    "origins",
    type=(str, str, str),
    multiple=True,
    metavar="PART NAME LICENSE",
    help="What a part comes from, such as: encoder facebook/nllb-200-distilled-600M CC-BY-NC-4.0. May be repeated; "
    "exported bundles carry it.",
)
_LLM = _options(
    click.option("--llm", required=True, metavar="SOURCE", help="Folder, GGUF file or hub id of the LLM."),
    _option("--layers", None, "Keep this many of the first layers; by default all.", type=click.IntRange(min=1)),
    _option("--attention", "causal", "How the LLM reads.", type=click.Choice(["causal", "bidirectional"])),
)
_LORA = _options(
    _option("--lora-rank", 16, "Rank of the adapters.", type=click.IntRange(min=1)),
    _option("--lora-alpha", 32.0, "Scale of the adapters, times their rank."),
    _option("--lora-dropout", 0.05, "Dropout before the adapters.", type=click.FloatRange(0, 1, max_open=True)),
)
_TEXT_COLUMN = _option(
    "--text-column", None, "Column of csv, jsonl and parquet files; by default 'text' or the only one.", metavar="NAME"
)
_LABEL_COLUMN = _option("--label-column", "label", "Likewise, of the labels.", metavar="NAME")
SECOND_COLUMNS = _options(
    _option("--pair-column", None, "Column of a pair's second text; by default 'text_pair', if there.", metavar="NAME"),
    _option(
        "--choices-column",
        (),
        "Column of the choices, a list; by default 'choices', if there. Given several times, each is one choice.",
        metavar="NAME",
        multiple=True,
    ),
)
_DEVICE = _option("--device", None, "cpu or cuda; by default cuda where there is one.")


def _optimisation(batch_size: int, learning_rate: float) -> Callable[[_Command], _Command]:
    return _options(
        _option("--batch-size", batch_size, "Texts per step, of all processes together.", type=click.IntRange(min=1)),
        _option(
            "--accumulate",
            1,
            "Read a step's texts in this many parts: less memory, the same result.",
            type=click.IntRange(min=1),
        ),
        _option("--learning-rate", learning_rate, "Of the adapters, at its peak.", type=click.FloatRange(0)),
        _option("--warmup", 0.01, "Fraction of the steps.", type=click.FloatRange(0, 1)),
        _option("--save-every", 200, "Steps between saves to resume from.", type=click.IntRange(min=1)),
        _option("--seed", 0, "Decides order and initialisation.", type=click.IntRange(min=0)),
        _DEVICE,
        click.option(
            "--gradient-checkpointing", is_flag=True, help="Less memory for a third more time, for large LLMs."
        ),
        _option("--dtype", "bfloat16", "Of the matrix products.", type=click.Choice(["bfloat16", "float32"])),
        _option(
            "--base-dtype",
            None,
            "Of the frozen weights; by default nf4 (the LLM's alone, in 4 bits) on CUDA, elsewhere as --dtype.",
            type=click.Choice(["nf4", "bfloat16", "float32"]),
        ),
    )


class _Stages(click.Group):
    """Says after Ctrl-C what the runtime's own commands cannot: what was trained is kept."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _log("stopped; repeat the command to go on from the last save")
            return ctx.exit(130)


@click.group(cls=_Stages, no_args_is_help=True)
def train() -> None:
    """Train a stack by self-distillation: adapt, finetune, distill; and evaluate it."""
    prepare()


def prepare() -> None:
    """Check the extra, and keep the libraries' own bars and warnings out of the output.

    Raises:
        UsageError: The extra is not installed.
    """
    require("train", *EXTRAS["train"])
    calm_openmp()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries about each other
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@train.command()
@click.argument("texts", nargs=-1, required=True)
@click.option("--encoder", required=True, metavar="SOURCE", help="Folder or hub id of the translation encoder.")
@_option("--max-tokens", 512, "Longest input of the encoder.", type=click.IntRange(min=4))
@_LLM
@_LORA
@_option("--stride", 1, "Encoder states that become one LLM input: more is faster.", type=click.IntRange(1, MAX_STRIDE))
@_option("--steps", 10_000, "Steps of training.", type=click.IntRange(min=1))
@_option("--bridge-learning-rate", 2e-4, "Of the bridge, at its peak.", type=click.FloatRange(0))
@_option(
    "--teacher-cache",
    None,
    "Keep the LLM's vectors here, four bytes a dimension, and read no text twice. Runs may share it.",
    type=_PATH,
    metavar="FOLDER",
)
@_optimisation(256, 2e-4)
@_TEXT_COLUMN
@_SOURCES
@_OUTPUT
def adapt(
    texts: tuple[str, ...],
    *,
    encoder: str,
    max_tokens: int,
    stride: int,
    steps: int,
    bridge_learning_rate: float,
    teacher_cache: Path | None,
    text_column: str | None,
    out: Path,
    name: str | None,
    force: bool,
    **options: Any,
) -> None:
    """General adaptation (stage 1): the stack learns to say what the LLM says of the English TEXTS.

    TEXTS are .txt files with a text per line, .csv, .jsonl and .parquet files, each but the last also as .zst; folders
    and globs of these; and data sets of the hub or of a folder, as hub:ID, hub:ID:CONFIG or hub:ID:CONFIG:SPLIT. They
    are read as needed, several in turns; a corpus may be larger than memory.
    """
    from mtllm_edge_train.adapt import adapt as run
    from mtllm_edge_train.config import EncoderConfig
    from mtllm_edge_train.streams import TextStream

    run(
        TextStream(texts, column=text_column),
        out,
        name=name or out.name,
        encoder=EncoderConfig(source=_absolute(encoder), max_tokens=max_tokens),
        llm=_llm(options),
        lora=_lora(options),
        steps=steps,
        settings=_settings(options),
        bridge_learning_rate=bridge_learning_rate,
        stride=stride,
        teacher_cache=teacher_cache,
        sources=_sources(options),
        force=force,
        log=_log,
    )


@train.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK=FILE...")
@_LLM
@_LORA
@_option(
    "--epochs",
    3,
    "Passes over the texts; the paper has 3 for pairs, 5 for multiple choice, 20 for a few hundred texts.",
    type=click.IntRange(min=1),
)
@_optimisation(32, 1e-4)
@_TEXT_COLUMN
@SECOND_COLUMNS
@_LABEL_COLUMN
@_SOURCES
@_OUTPUT
def finetune(
    tasks: tuple[str, ...],
    *,
    epochs: int,
    text_column: str | None,
    label_column: str,
    out: Path,
    name: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Task fine-tuning: the LLM alone learns one or several tasks from English labels.

    FILE is a .csv, .jsonl or .parquet file of labelled texts, or a data set of the hub or of a folder, such as
    hub:ID:CONFIG:SPLIT. Where it has a column 'text_pair' too, the task is about pairs of texts; where it has
    'choices', it is multiple choice, and labels are numbers of choices, from 0. The result is the teacher of `distill`.
    """
    from mtllm_edge_train.data import read_labelled
    from mtllm_edge_train.finetune import finetune as run

    files = dict(_task_file(task) for task in tasks)
    if len(files) < len(tasks):
        raise UsageError("a task is named twice; give each task one file")
    run(
        {
            task: read_labelled(file, text_column=text_column, label_column=label_column, columns=_columns(options))
            for task, file in files.items()
        },
        out,
        name=name or out.name,
        llm=_llm(options),
        lora=_lora(options),
        settings=_settings(options),
        epochs=epochs,
        sources=_sources(options),
        force=force,
        log=_log,
    )


@train.command()
@click.argument("adapted", type=_PATH)
@click.argument("teacher", type=_PATH)
@click.argument("texts", nargs=-1, required=True)
@_option("--epochs", 3, "Passes over the texts.", type=click.IntRange(min=1))
@_optimisation(32, 1e-4)
@_TEXT_COLUMN
@SECOND_COLUMNS
@_OUTPUT
def distill(
    adapted: Path,
    teacher: Path,
    texts: tuple[str, ...],
    *,
    epochs: int,
    text_column: str | None,
    out: Path,
    name: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Task distillation (stage 2): the ADAPTED stack learns to say what the TEACHER says of English TEXTS.

    ADAPTED is a checkpoint of `adapt`, TEACHER one of `finetune`. TEXTS are the tasks' training files or
    data sets; any other of English text may be added, no label is read.
    """
    from mtllm_edge_train.data import read_inputs
    from mtllm_edge_train.distill import distill as run

    columns = _columns(options)
    run(
        [item for source in texts for item in read_inputs(source, text_column=text_column, columns=columns)],
        adapted,
        teacher,
        out,
        name=name or out.name,
        settings=_settings(options),
        epochs=epochs,
        force=force,
        log=_log,
    )


@train.command()
@click.argument("checkpoint", type=_PATH)
@click.argument("files", nargs=-1, required=True)
@click.option("-t", "--task", required=True, metavar="NAME", help="The task whose head answers.")
@click.option("--language", metavar="CODE", help="Language of all texts, for encoders that must be told.")
@_TEXT_COLUMN
@SECOND_COLUMNS
@_LABEL_COLUMN
@_DEVICE
def evaluate(
    checkpoint: Path,
    files: tuple[str, ...],
    *,
    task: str,
    language: str | None,
    text_column: str | None,
    label_column: str,
    device: str | None,
    **options: Any,
) -> None:
    """Classify labelled FILES or data sets with a CHECKPOINT in torch; print one line of JSON for each."""
    import msgspec

    from mtllm_edge_train.data import read_labelled
    from mtllm_edge_train.evaluate import Evaluator

    columns = _columns(options)
    sets = {
        file: read_labelled(file, text_column=text_column, label_column=label_column, columns=columns) for file in files
    }
    for file, data in sets.items():
        _log(f"{file} {data.summary}")
    evaluator = Evaluator(checkpoint, device=chosen_device(device))
    for file, data in sets.items():
        scores = evaluator.evaluate(task, data, language=language)
        line = {"file": file, "task": task, **msgspec.structs.asdict(scores)}
        click.echo(msgspec.json.encode(line).decode())


def _log(line: str) -> None:
    if processes.rank() == 0:
        click.echo(line, err=True)


def _task_file(argument: str) -> tuple[str, str]:
    task, separator, file = argument.partition("=")
    if not separator or not task.isidentifier() or not file:
        raise UsageError(f"{argument!r} is not TASK=FILE; name the task (letters, digits, _), then its training file")
    return task, file


def _absolute(source: str) -> str:
    """A local path survives a change of folder; a hub id stays as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _columns(options: dict[str, Any]) -> Columns:
    return Columns(options["pair_column"], options["choices_column"])


def _llm(options: dict[str, Any]) -> LlmConfig:
    from mtllm_edge_train.config import LlmConfig

    return LlmConfig(source=_absolute(options["llm"]), layers=options["layers"], attention=options["attention"])


def _lora(options: dict[str, Any]) -> LoraConfig:
    from mtllm_edge_train.config import LoraConfig

    return LoraConfig(rank=options["lora_rank"], alpha=options["lora_alpha"], dropout=options["lora_dropout"])


def _sources(options: dict[str, Any]) -> list[Source]:
    return [Source(part=part, name=name, license=license_id) for part, name, license_id in options["origins"]]


def _settings(options: dict[str, Any]) -> LoopSettings:
    from mtllm_edge_train.loop import LoopSettings

    names = (
        *("batch_size", "accumulate", "learning_rate", "warmup", "save_every", "seed"),
        *("dtype", "gradient_checkpointing"),
    )
    device = chosen_device(options["device"])
    base_dtype = _base_dtype(options["base_dtype"], options["dtype"], device)
    return LoopSettings(device=device, base_dtype=base_dtype, **{name: options[name] for name in names})


def _base_dtype(asked: str | None, dtype: str, device: str) -> str | None:
    from mtllm_edge_train.nf4 import check_nf4

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
        processes.join(torch.device(chosen).type)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UsageError(f"--device {chosen} cannot be used here ({reason}); choose cpu") from None
    return chosen
