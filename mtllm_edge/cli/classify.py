"""`mtllm-edge classify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtllm_edge import console
from mtllm_edge.backends.probing.offload import GpuLayers
from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.batch import Order, output_format, perform, sources_of
from mtllm_edge.cli.options import (
    INPUTS_HELP,
    KINDS_HELP,
    PATH,
    abstaining_options,
    bundle_option,
    input_options,
    long_option,
    other_columns_options,
    output_options,
    texts_argument,
)
from mtllm_edge.errors import UsageError
from mtllm_edge.files.columns import Columns
from mtllm_edge.jobs.inputs import Asked, Request
from mtllm_edge.jobs.output import FORMS
from mtllm_edge.jobs.row_languages import RowLanguages
from mtllm_edge.jobs.runner import Answer, Model
from mtllm_edge.tasks.calibration import resolve_abstention
from mtllm_edge.tokenization.windows import LongTexts, check_long_texts

if TYPE_CHECKING:
    from mtllm_edge.tasks.prediction import Prediction


@click.command(epilog=INPUTS_HELP + KINDS_HELP)
@texts_argument
@bundle_option
@click.option("-t", "--task", metavar="NAME", help="The task; may be left out where the model has only one.")
@input_options
@other_columns_options
@long_option
@abstaining_options
@click.option(
    "-o", "--output", type=PATH, metavar="FILE", help="Write this file: .csv, .tsv, .jsonl, .parquet or .xlsx."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", *FORMS.values()]),
    help="By default what the name of --output says; else a table on a terminal and csv in a pipe.",
)
@output_options
def classify(
    texts: tuple[str, ...],
    bundle: Path,
    *,
    task: str | None,
    language: str | None,
    language_column: str | None,
    text_column: str | None,
    pair_column: str | None,
    choices_columns: tuple[str, ...],
    threads: int | None,
    llm_backend: LlmBackend | None,
    gpu_layers: GpuLayers,
    long_texts: LongTexts,
    threshold: float | None,
    abstain: str | None,
    output: Path | None,
    form: str | None,
    strict: bool,
    force: bool,
    restart: bool,
) -> None:
    """Classify texts in many languages.

    Results keep the input's columns and add label, confidence, and truncated: whether the text was longer than the
    model takes and lost its end. jsonl and parquet also have the probability of every label. Where languages are given
    or identified, there is a column language, and a table at the end tells what was found in each; with --long
    pool a column windows; where the task may abstain, its label then is 'unsure', and a column abstained says so. Where
    the input has a column of that name already, the new one is called predicted_label and so on.
    """
    form = form or output_format(output, FORMS, ("table", "csv"))
    if output is None and form in ("parquet", "xlsx"):
        raise UsageError(f"--format {form} needs a file; name it with --output")
    sources = sources_of(texts, text_column, output)
    opened = Bundle.open(bundle)
    task = opened.task_name(task)
    part = opened.manifest.tasks[task]
    columns = Columns(pair_column, choices_columns)
    columns.check(part.kind)
    check_long_texts(long_texts, part.kind, f"task {task!r}")
    languages = RowLanguages(opened.manifest, language, language_column)
    more = ["language"] * languages.enabled + ["windows"] * (long_texts != "cut")
    more += ["abstained"] * (resolve_abstention(part, threshold, abstain)[0] > 0)
    more += ["probabilities"] * (form in ("jsonl", "parquet"))

    @contextmanager
    def load() -> Iterator[Model]:
        with console.spinner("loading the model"):
            from mtllm_edge.classifier import Classifier

            classifier = Classifier.load(
                opened, task=task, threads=threads, llm_backend=llm_backend, gpu_layers=gpu_layers
            )

        def answer(rows: Sequence[Asked], progress: Callable[[int], None]) -> list[Answer]:
            spoken, texts = zip(*rows, strict=True)
            predictions = classifier.classify(
                texts, language=spoken, long_texts=long_texts, threshold=threshold, abstain=abstain, progress=progress
            )
            return [_answer(prediction, more) for prediction in predictions]

        with classifier:
            yield answer

    options = {
        "--task": task,
        "--lang": language,
        "--language-column": language_column,
        "--text-column": text_column,
        "--pair-column": pair_column,
        "--choices-column": ", ".join(choices_columns),
        "--llm-backend": llm_backend,
        "--long": long_texts,
        "--threshold": None if threshold is None else str(threshold),
        "--abstain": abstain,
    }
    perform(
        Order(
            command="classify",
            bundle=opened,
            sources=sources,
            request=Request(part.kind, text_column, columns, languages.language_of if languages.enabled else None),
            form=form,
            output=output,
            options=options,
            strict=strict,
            force=force,
            restart=restart,
        ),
        load,
    )


def _answer(prediction: Prediction, more: Sequence[str]) -> Answer:
    """The columns of a prediction; `more` names fields of it beside those that are always there."""
    answer: Answer = {
        "label": prediction.label,
        "confidence": round(prediction.confidence, 6),
        "truncated": prediction.truncated,
    }
    for field in more:
        answer[field] = getattr(prediction, field)
    if "probabilities" in answer:
        answer["probabilities"] = {label: round(value, 6) for label, value in prediction.probabilities.items()}
    return answer
