"""The commands `train adapt`, `train finetune` and `train distill`.

Heavy imports are inside functions, after the check of the extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtllm_edge.bundle.manifest import MAX_STRIDE
from mtllm_edge.errors import UsageError
from mtllm_edge_train.cli import options as shared


class _Stages(click.Group):
    """A group whose Ctrl-C message says that the training state is kept."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            shared.log("stopped; repeat the command to resume from the last save")
            return ctx.exit(130)


@click.group(cls=_Stages, no_args_is_help=True)
def train() -> None:
    """Train a stack by self-distillation: adapt, finetune, distill."""
    shared.prepare()


@train.command()
@click.argument("texts", nargs=-1, required=True)
@click.option("--encoder", required=True, metavar="SOURCE", help="Folder or hub id of the translation encoder.")
@shared.option("--max-tokens", 512, "Maximum input length of the encoder in tokens.", type=click.IntRange(min=4))
@shared.LLM
@shared.LORA
@shared.option("--stride", 1, "Encoder states per LLM input: more is faster.", type=click.IntRange(1, MAX_STRIDE))
@shared.option("--steps", 10_000, "Number of training steps.", type=click.IntRange(min=1))
@shared.option("--bridge-learning-rate", 2e-4, "Peak learning rate of the bridge.", type=click.FloatRange(0))
@shared.option(
    "--teacher-cache",
    None,
    "Cache the LLM's vectors here, four bytes per dimension, and embed no text twice. Runs may share it.",
    type=shared.PATH,
    metavar="FOLDER",
)
@shared.optimization(256, 2e-4)
@shared.TEXT_COLUMN
@shared.SOURCES
@shared.OUTPUT
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
    **options: Any,
) -> None:
    """General adaptation (stage 1): the stack learns to reproduce the LLM's vectors of English TEXTS.

    TEXTS are .txt files with a text per line, .csv, .tsv, .jsonl, .parquet and .xlsx files, text formats also as .gz or
    .zst; folders and globs of these; and data sets of the hub or of a folder, as hub:ID, hub:ID:CONFIG or
    hub:ID:CONFIG:SPLIT. They are streamed and interleaved, so a corpus may be larger than memory.
    """
    from mtllm_edge_train.checkpoints.config import EncoderConfig
    from mtllm_edge_train.data.streams import TextStream
    from mtllm_edge_train.stages.adapt import Adaptation

    stage = Adaptation(
        texts=TextStream(texts, column=text_column),
        encoder=EncoderConfig(source=shared.absolute_source(encoder), max_tokens=max_tokens),
        steps=steps,
        bridge_learning_rate=bridge_learning_rate,
        stride=stride,
        teacher_cache=teacher_cache,
        **shared.model_options(options),
        **shared.run_options(options),
    )
    shared.run(stage, options)


@train.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK=FILE...")
@shared.LLM
@shared.LORA
@shared.option(
    "--epochs",
    3,
    "Passes over the texts; the paper has 3 for pairs, 5 for multiple choice, 20 for a few hundred texts.",
    type=click.IntRange(min=1),
)
@shared.optimization(32, 1e-4)
@shared.TEXT_COLUMN
@shared.SECOND_COLUMNS
@shared.LABEL_COLUMN
@shared.SOURCES
@shared.OUTPUT
def finetune(
    tasks: tuple[str, ...], *, epochs: int, text_column: str | None, label_column: str, **options: Any
) -> None:
    """Task fine-tuning: the LLM alone learns one or several tasks from English labels.

    FILE is a table of labeled texts (.csv, .tsv, .jsonl, .parquet, .xlsx), or a data set of the hub or of a folder,
    such as hub:ID:CONFIG:SPLIT. A column 'text_pair' makes it a task of text pairs. A column 'choices' makes it
    multiple choice; its labels are indices of choices, from 0. The result is the teacher of `distill`.
    """
    from mtllm_edge_train.data.labeled import read_labeled
    from mtllm_edge_train.stages.finetune import FineTuning

    files = dict(_task_file(task) for task in tasks)
    if len(files) < len(tasks):
        raise UsageError("a task is named twice; give each task one file")
    columns = shared.columns_of(options)
    stage = FineTuning(
        tasks={
            task: read_labeled(file, text_column=text_column, label_column=label_column, columns=columns)
            for task, file in files.items()
        },
        epochs=epochs,
        **shared.model_options(options),
        **shared.run_options(options),
    )
    shared.run(stage, options)


@train.command()
@click.argument("adapted", type=shared.PATH)
@click.argument("teacher", type=shared.PATH)
@click.argument("texts", nargs=-1, required=True)
@shared.option("--epochs", 3, "Passes over the texts.", type=click.IntRange(min=1))
@shared.optimization(32, 1e-4)
@shared.TEXT_COLUMN
@shared.SECOND_COLUMNS
@shared.OUTPUT
def distill(
    adapted: Path, teacher: Path, texts: tuple[str, ...], *, epochs: int, text_column: str | None, **options: Any
) -> None:
    """Task distillation (stage 2): the ADAPTED stack learns to reproduce the TEACHER's vectors of English TEXTS.

    ADAPTED is a checkpoint of `adapt`, TEACHER one of `finetune`. TEXTS are the training files or data sets of the
    tasks; other English text may be added, because labels are not used.
    """
    from mtllm_edge_train.data.labeled import read_inputs
    from mtllm_edge_train.stages.distill import Distillation

    columns = shared.columns_of(options)
    inputs = [item for source in texts for item in read_inputs(source, text_column=text_column, columns=columns)]
    stage = Distillation(texts=inputs, adapted=adapted, teacher=teacher, epochs=epochs, **shared.run_options(options))
    shared.run(stage, options)


def _task_file(argument: str) -> tuple[str, str]:
    task, separator, file = argument.partition("=")
    if not separator or not task.isidentifier() or not file:
        raise UsageError(f"{argument!r} is not TASK=FILE; name the task (letters, digits, _), then its training file")
    return task, file
