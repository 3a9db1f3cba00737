"""The command `eval`. Heavy imports are inside functions, after the check of the extra."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mtllm_edge import console
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.atomic import atomic_folder, check_output_folder
from mtllm_edge_train.cli.options import PATH, SECOND_COLUMNS, available_device, columns_of, prepare

if TYPE_CHECKING:
    from mtllm_edge_train.data.labeled import LabeledTexts
    from mtllm_edge_train.evaluation.data import Schema
    from mtllm_edge_train.evaluation.model_under_test import ModelUnderTest
    from mtllm_edge_train.evaluation.prediction_cache import PredictionCache
    from mtllm_edge_train.evaluation.report import Report
    from mtllm_edge_train.evaluation.systems import System

REPORT_NAME = "eval.json"
_CHUNK = 256
"""Number of texts that are predicted and cached together."""


@click.command("eval")
@click.argument("model", type=PATH)
@click.argument("data", nargs=-1, required=True)
@click.option("-t", "--task", required=True, metavar="NAME", help="Task of the model.")
@click.option("-o", "--output", "out", type=PATH, required=True, metavar="FOLDER", help="Folder to write.")
@click.option("--train", metavar="FILE", help="Training rows, in the format of DATA: for encoder alone.")
@click.option("--teacher", type=PATH, metavar="CHECKPOINT", help="LLM made by `train finetune`: for LLM alone.")
@click.option("--translator", type=PATH, metavar="FOLDER", help="With --teacher: for translate-test.")
@click.option("--seen", metavar="FILE", help="Language codes that the encoder was trained on, or: e5.")
@click.option(
    "--resources", type=PATH, metavar="FILE", help="Parallel sentences by language: .tsv with columns lang, sentences."
)
@click.option("--text-column", default="text", show_default=True, metavar="NAME", help="Column of the texts.")
@SECOND_COLUMNS
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help="Column of the labels.")
@click.option(
    "--language-column", default="lang", show_default=True, metavar="NAME", help="Column of the language codes."
)
@click.option("--language", metavar="CODE", help="Language of all rows of DATA, instead of a column.")
@click.option(
    "--where", multiple=True, metavar="COLUMN=VALUE", help="Use these rows of DATA. A column may have several values."
)
@click.option("--train-where", multiple=True, metavar="COLUMN=VALUE", help="Use these rows of --train.")
@click.option(
    "--train-language", default="eng_Latn", show_default=True, metavar="CODE", help="Language of the training labels."
)
@click.option(
    "--measure",
    type=click.Choice(["accuracy", "macro-f1"]),
    default="accuracy",
    show_default=True,
    help="Measure of the terminal table and the chart.",
)
@click.option(
    "--resamples", type=click.IntRange(min=100), default=1000, show_default=True, help="Number of bootstrap resamples."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed of the resamples.")
@click.option(
    "--cache", type=PATH, metavar="FOLDER", help="Keep all predictions here; by default only until the report exists."
)
@click.option("--device", help="Device of the models in torch; by default cuda if available.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of the engines.")
@click.option("--force", is_flag=True, help="Replace an existing report, once the new one is complete.")
@click.pass_context
def evaluate(
    ctx: click.Context, /, *, out: Path, measure: str, cache: Path | None, force: bool, **options: Any
) -> None:
    """Evaluate a model language by language, and compare an MT-LLM with its baselines.

    MODEL is a bundle, a checkpoint, or a fine-tuned LLM without an encoder, which has no baselines. DATA are tables
    (.csv, .tsv, .jsonl, .parquet, .xlsx), or data sets such as hub:ID:CONFIG:SPLIT. Each row has a text, a label and a
    language, and a second text or choices if the task requires them. A baseline runs if its input is given: encoder
    alone, translate-test, LLM alone.

    The output folder receives eval.json, eval.md and eval.png. The last line on stdout is the summary as JSON.
    """
    prepare()
    check_output_folder(out, force=force, marker=REPORT_NAME)
    _check_options(options)
    from mtllm_edge_train.evaluation import chart, tables
    from mtllm_edge_train.evaluation.prediction_cache import PredictionCache

    predictions = PredictionCache(cache or out.with_name(f"{out.name}.partial"))
    try:
        report = _compare(options, predictions)
    except KeyboardInterrupt:
        console.note("stopped; repeat the command to resume, the predictions are kept")
        ctx.exit(130)
    measure = measure.replace("-", "_")
    with atomic_folder(out, force=force, marker=REPORT_NAME) as folder:
        folder.joinpath(REPORT_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        folder.joinpath("eval.md").write_text(tables.markdown(report), encoding="utf-8")
        chart.save_chart(report, measure, folder / "eval.png")
    if cache is None:
        predictions.remove_used()
    console.print_stdout(tables.terminal_view(report, measure))
    click.echo(msgspec.json.encode(report.summary()).decode())


def _check_options(options: dict[str, Any]) -> None:
    if options["translator"] is not None and options["teacher"] is None:
        raise UsageError("--translator needs --teacher, which reads the translations")
    if options["train_where"] and options["train"] is None:
        raise UsageError("--train-where chooses rows of --train, which is not given")


def _compare(options: dict[str, Any], cache: PredictionCache) -> Report:
    """Predict the labels of all rows with all systems, and score the predictions."""
    from mtllm_edge_train.evaluation.data import Schema, check_labels, read_by_language
    from mtllm_edge_train.evaluation.model_under_test import open_model
    from mtllm_edge_train.evaluation.report import make_report
    from mtllm_edge_train.evaluation.systems import SystemFactory

    model = open_model(options["model"], options["task"])
    _check_baselines(model, options)
    columns = {name: options[name] for name in ("text_column", "label_column", "language_column", "language")}
    schema = Schema(kind=model.kind, columns=columns_of(options), **columns)
    rows = read_by_language(options["data"], schema, _row_filter(options["where"]))
    check_labels(rows, model.labels, model.task)
    training = _training_rows(model, schema, options)
    factory = SystemFactory(model, [*rows], cache, available_device(options["device"]), options["threads"])
    systems, left_out = factory.build(
        train=training, **{name: options[name] for name in ("train_language", "teacher", "translator")}
    )
    groups = _groups([*rows], options)
    label_counts = Counter(label for data in rows.values() for label in data.labels)
    console.note(f"{model.task} ({model.kind}): {dict(sorted(label_counts.items()))}")
    if training is not None:
        console.note(f"training {training.summary}")
    descriptions = {system.id: system.description for system in systems}
    predictions = {}
    while systems:
        system = systems.pop(0)  # releases the models of a system before those of the next one are loaded
        predictions[system.id] = _predict(system, rows)
    return make_report(
        rows,
        predictions,
        groups,
        model=model.name,
        task=model.task,
        systems=descriptions,
        left_out=left_out,
        resamples=options["resamples"],
        seed=options["seed"],
    )


def _check_baselines(model: ModelUnderTest, options: dict[str, Any]) -> None:
    baselines = [name for name in ("train", "teacher", "translator") if options[name] is not None]
    if baselines and not model.has_encoder:
        raise UsageError(
            f"{options['model']} is an LLM without an encoder, which has no baselines; leave out --{baselines[0]}, or "
            "give it as --teacher, and a stack as MODEL"
        )


def _training_rows(model: ModelUnderTest, schema: Schema, options: dict[str, Any]) -> LabeledTexts | None:
    from mtllm_edge_train.evaluation.data import check_labels, read_training_rows

    if options["train"] is None:
        return None
    language = options["train_language"]
    training = read_training_rows(options["train"], schema, _row_filter(options["train_where"]), language=language)
    check_labels({language: training}, model.labels, model.task)
    return training


def _groups(languages: Sequence[str], options: dict[str, Any]) -> Any:
    from mtllm_edge_train.evaluation.language_groups import language_groups, read_seen, read_sentences

    seen, resources = options["seen"], options["resources"]
    return language_groups(
        languages,
        source=options["train_language"],
        seen=None if seen is None else read_seen(seen, languages),
        sentences=None if resources is None else read_sentences(resources),
    )


def _predict(system: System, rows: Mapping[str, LabeledTexts]) -> dict[str, list[str]]:
    """Language -> predicted labels of its rows."""
    from mtllm_edge_train.evaluation.systems import TITLES

    title = TITLES[system.id]
    total = sum(len(data.texts) for data in rows.values())
    console.note(f"{title}: {console.count(total, 'text')} in {console.count(len(rows), 'language')}")
    predictions: dict[str, list[str]] = defaultdict(list)
    with progress_bar(total) as progress:
        for language, data in rows.items():
            for start in range(0, len(data.texts), _CHUNK):
                chunk = data.inputs[start : start + _CHUNK]
                try:
                    predictions[language] += system.predict(chunk, language)
                except DataError as error:
                    raise DataError(f"{title}, {language}, from text {start} on: {error}") from None
                progress(len(chunk))
    return predictions


def _row_filter(conditions: Sequence[str]) -> dict[str, set[str]]:
    row_filter: dict[str, set[str]] = defaultdict(set)
    for condition in conditions:
        column, separator, value = condition.partition("=")
        if not separator or not column:
            raise UsageError(f"{condition!r} is not COLUMN=VALUE; name the column, then the value of the rows to take")
        row_filter[column].add(value)
    return row_filter
