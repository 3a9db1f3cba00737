"""`mtllm-edge classify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from mtllm_edge import console
from mtllm_edge.classifier import Classifier
from mtllm_edge.cli import options
from mtllm_edge.cli.batch import Batch, output_format, run_batch
from mtllm_edge.errors import UsageError
from mtllm_edge.files.columns import Columns
from mtllm_edge.jobs.inputs import ModelInput
from mtllm_edge.jobs.output import FORMATS
from mtllm_edge.jobs.runner import Model, Result
from mtllm_edge.tasks.calibration import resolve_abstention
from mtllm_edge.tasks.prediction import Prediction
from mtllm_edge.tokenization.windows import check_long_texts


@click.command(epilog=options.INPUTS_HELP + options.KINDS_HELP)
@options.texts_argument
@options.bundle_option
@options.task_option
@options.input_options
@options.second_columns_options
@options.long_option
@options.abstention_options
@click.option(
    "-o", "--output", type=options.PATH, metavar="FILE", help="Output file: .csv, .tsv, .jsonl, .parquet or .xlsx."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", *FORMATS.values()]),
    help="By default that of the --output name; otherwise a table on a terminal and csv in a pipe.",
)
@options.output_options
@options.pass_batch_options
def classify(
    shared: options.BatchOptions,
    *,
    task: str | None,
    pair_column: str | None,
    choices_columns: tuple[str, ...],
    threshold: float | None,
    abstain: str | None,
    form: str | None,
) -> None:
    """Classify texts in many languages.

    The output has the columns of the input, and label, confidence and truncated: whether the text was longer than the
    model takes and lost its end. jsonl and parquet also have the probability of every label. With given or identified
    languages there is a column language, and a summary by language at the end; with --long pool a column windows. If
    the task may abstain, the label of an abstention is 'unsure', and there is a column abstained. If the input has a
    column of that name already, the new one is called predicted_label and so on.
    """
    form = form or output_format(shared.output, FORMATS, terminal="table", pipe="csv")
    if shared.output is None and form in ("parquet", "xlsx"):
        raise UsageError(f"--format {form} needs a file; name it with --output")
    batch = Batch.open(shared, form)
    task = batch.bundle.task_name(task)
    spec = batch.bundle.manifest.tasks[task]
    columns = Columns(pair_column, choices_columns)
    columns.check(spec.kind)
    check_long_texts(shared.long_texts, spec.kind, f"task {task!r}")
    extra_fields = ["language"] * batch.languages.enabled + ["windows"] * (shared.long_texts != "cut")
    extra_fields += ["abstained"] * (resolve_abstention(spec, threshold, abstain)[0] > 0)
    extra_fields += ["probabilities"] * (form in ("jsonl", "parquet"))

    @contextmanager
    def load() -> Iterator[Model]:
        with console.spinner("loading the model"):
            classifier = Classifier.load(batch.bundle, task=task, **shared.engines)

        def model(rows: Sequence[ModelInput], progress: Callable[[int], None]) -> list[Result]:
            languages, texts = zip(*rows, strict=True)
            predictions = classifier.classify(
                texts,
                language=languages,
                long_texts=shared.long_texts,
                threshold=threshold,
                abstain=abstain,
                progress=progress,
            )
            return [_columns_of(prediction, extra_fields) for prediction in predictions]

        with classifier:
            yield model

    run_batch(batch, batch.reader(spec.kind, columns), load, task=task)


def _columns_of(prediction: Prediction, extra_fields: Sequence[str]) -> Result:
    """Return the output columns of a prediction."""
    result: Result = {
        "label": prediction.label,
        "confidence": round(prediction.confidence, 6),
        "truncated": prediction.truncated,
    }
    result |= {field: getattr(prediction, field) for field in extra_fields}
    if "probabilities" in result:
        result["probabilities"] = {label: round(value, 6) for label, value in prediction.probabilities.items()}
    return result
