"""The commands `train adapt`, `train finetune`, `train distill` and `train evaluate`.

The heavy imports wait until the extra is known to be there.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.bundle.manifest import MAX_STRIDE
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import EXTRAS, require
from mtllm_edge_train.cli.options import (
    DEVICE,
    LABEL_COLUMN,
    LLM,
    LORA,
    OUTPUT,
    PATH,
    SECOND_COLUMNS,
    SOURCES,
    TEXT_COLUMN,
    absolute_source,
    chosen_device,
    columns_of,
    llm_config,
    loop_settings,
    lora_config,
    optimization,
    option,
    sources_of,
)
from mtllm_edge_train.training import distributed

if TYPE_CHECKING:
    pass


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
    configure_openmp()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries about each other
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@train.command()
@click.argument("texts", nargs=-1, required=True)
@click.option("--encoder", required=True, metavar="SOURCE", help="Folder or hub id of the translation encoder.")
@option("--max-tokens", 512, "Longest input of the encoder.", type=click.IntRange(min=4))
@LLM
@LORA
@option("--stride", 1, "Encoder states that become one LLM input: more is faster.", type=click.IntRange(1, MAX_STRIDE))
@option("--steps", 10_000, "Steps of training.", type=click.IntRange(min=1))
@option("--bridge-learning-rate", 2e-4, "Of the bridge, at its peak.", type=click.FloatRange(0))
@option(
    "--teacher-cache",
    None,
    "Keep the LLM's vectors here, four bytes a dimension, and read no text twice. Runs may share it.",
    type=PATH,
    metavar="FOLDER",
)
@optimization(256, 2e-4)
@TEXT_COLUMN
@SOURCES
@OUTPUT
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
    from mtllm_edge_train.checkpoints.config import EncoderConfig
    from mtllm_edge_train.data.streams import TextStream
    from mtllm_edge_train.stages.adapt import adapt as run

    run(
        TextStream(texts, column=text_column),
        out,
        name=name or out.name,
        encoder=EncoderConfig(source=absolute_source(encoder), max_tokens=max_tokens),
        llm=llm_config(options),
        lora=lora_config(options),
        steps=steps,
        settings=loop_settings(options),
        bridge_learning_rate=bridge_learning_rate,
        stride=stride,
        teacher_cache=teacher_cache,
        sources=sources_of(options),
        force=force,
        log=_log,
    )


@train.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK=FILE...")
@LLM
@LORA
@option(
    "--epochs",
    3,
    "Passes over the texts; the paper has 3 for pairs, 5 for multiple choice, 20 for a few hundred texts.",
    type=click.IntRange(min=1),
)
@optimization(32, 1e-4)
@TEXT_COLUMN
@SECOND_COLUMNS
@LABEL_COLUMN
@SOURCES
@OUTPUT
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
    from mtllm_edge_train.data.labeled import read_labeled
    from mtllm_edge_train.stages.finetune import finetune as run

    files = dict(_task_file(task) for task in tasks)
    if len(files) < len(tasks):
        raise UsageError("a task is named twice; give each task one file")
    run(
        {
            task: read_labeled(file, text_column=text_column, label_column=label_column, columns=columns_of(options))
            for task, file in files.items()
        },
        out,
        name=name or out.name,
        llm=llm_config(options),
        lora=lora_config(options),
        settings=loop_settings(options),
        epochs=epochs,
        sources=sources_of(options),
        force=force,
        log=_log,
    )


@train.command()
@click.argument("adapted", type=PATH)
@click.argument("teacher", type=PATH)
@click.argument("texts", nargs=-1, required=True)
@option("--epochs", 3, "Passes over the texts.", type=click.IntRange(min=1))
@optimization(32, 1e-4)
@TEXT_COLUMN
@SECOND_COLUMNS
@OUTPUT
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
    from mtllm_edge_train.data.labeled import read_inputs
    from mtllm_edge_train.stages.distill import distill as run

    columns = columns_of(options)
    run(
        [item for source in texts for item in read_inputs(source, text_column=text_column, columns=columns)],
        adapted,
        teacher,
        out,
        name=name or out.name,
        settings=loop_settings(options),
        epochs=epochs,
        force=force,
        log=_log,
    )


@train.command()
@click.argument("checkpoint", type=PATH)
@click.argument("files", nargs=-1, required=True)
@click.option("-t", "--task", required=True, metavar="NAME", help="The task whose head answers.")
@click.option("--language", metavar="CODE", help="Language of all texts, for encoders that must be told.")
@TEXT_COLUMN
@SECOND_COLUMNS
@LABEL_COLUMN
@DEVICE
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

    from mtllm_edge_train.data.labeled import read_labeled
    from mtllm_edge_train.evaluation.scoring import Evaluator

    columns = columns_of(options)
    sets = {
        file: read_labeled(file, text_column=text_column, label_column=label_column, columns=columns) for file in files
    }
    for file, data in sets.items():
        _log(f"{file} {data.summary}")
    evaluator = Evaluator(checkpoint, device=chosen_device(device))
    for file, data in sets.items():
        scores = evaluator.evaluate(task, data, language=language)
        line = {"file": file, "task": task, **msgspec.structs.asdict(scores)}
        click.echo(msgspec.json.encode(line).decode())


def _log(line: str) -> None:
    if distributed.rank() == 0:
        click.echo(line, err=True)


def _task_file(argument: str) -> tuple[str, str]:
    task, separator, file = argument.partition("=")
    if not separator or not task.isidentifier() or not file:
        raise UsageError(f"{argument!r} is not TASK=FILE; name the task (letters, digits, _), then its training file")
    return task, file
