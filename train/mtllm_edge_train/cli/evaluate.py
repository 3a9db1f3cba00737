"""The command `eval`; the heavy imports wait until the extra is known to be there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from mtllm_edge import console
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.atomic import atomic_folder, check_output_folder
from mtllm_edge.files.columns import Columns
from mtllm_edge_train.cli.options import SECOND_COLUMNS, chosen_device
from mtllm_edge_train.cli.train import prepare

if TYPE_CHECKING:
    from mtllm_edge_train.data.labeled import LabeledTexts
    from mtllm_edge_train.evaluation.systems import System

REPORT_NAME = "eval.json"
_PATH = click.Path(path_type=Path)
_CHUNK = 256
"""Texts that are asked for, and kept, at a time."""


@click.command("eval")
@click.argument("model", type=_PATH)
@click.argument("data", nargs=-1, required=True)
@click.option("-t", "--task", required=True, metavar="NAME", help="The model's task that DATA has labels of.")
@click.option("-o", "--output", "out", type=_PATH, required=True, metavar="FOLDER", help="Folder to write.")
@click.option("--train", metavar="FILE", help="Training rows, in DATA's form: for encoder alone.")
@click.option("--teacher", type=_PATH, metavar="CHECKPOINT", help="LLM made by `train finetune`: for LLM alone.")
@click.option("--translator", type=_PATH, metavar="FOLDER", help="With --teacher: for translate-test.")
@click.option("--seen", metavar="FILE", help="Codes of the languages that the encoder was trained on, or: e5.")
@click.option(
    "--resources", type=_PATH, metavar="FILE", help="Parallel sentences by language: .tsv with columns lang, sentences."
)
@click.option("--text-column", default="text", show_default=True, metavar="NAME", help="Column of the texts.")
@SECOND_COLUMNS
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help="Of the labels.")
@click.option("--language-column", default="lang", show_default=True, metavar="NAME", help="Of the texts' languages.")
@click.option(
    "--where", multiple=True, metavar="COLUMN=VALUE", help="Take these rows of DATA; values of one column add up."
)
@click.option("--train-where", multiple=True, metavar="COLUMN=VALUE", help="Likewise, of --train.")
@click.option(
    "--train-language", default="eng_Latn", show_default=True, metavar="CODE", help="Language of the training labels."
)
@click.option(
    "--measure", type=click.Choice(["accuracy", "macro-f1"]), default="accuracy", show_default=True, help="To show."
)
@click.option("--resamples", type=click.IntRange(min=100), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resamples.")
@click.option(
    "--cache", type=_PATH, metavar="FOLDER", help="Keep all answers here; by default only until all is written."
)
@click.option("--device", help="Of what runs in torch; by default cuda where there is one.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Of the engines; by default what suits.")
@click.option("--force", is_flag=True, help="Replace an existing evaluation, once the new one is complete.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    model: Path,
    data: tuple[str, ...],
    *,
    task: str,
    out: Path,
    train: str | None,
    teacher: Path | None,
    translator: Path | None,
    seen: str | None,
    resources: Path | None,
    text_column: str,
    pair_column: str | None,
    choices_column: tuple[str, ...],
    label_column: str,
    language_column: str,
    where: tuple[str, ...],
    train_where: tuple[str, ...],
    train_language: str,
    measure: str,
    resamples: int,
    seed: int,
    cache: Path | None,
    device: str | None,
    threads: int | None,
    force: bool,
) -> None:
    """Compare an MT-LLM with its baselines, language by language.

    MODEL is a bundle or a checkpoint. DATA are .csv, .jsonl or .parquet files, or data sets such as
    hub:ID:CONFIG:SPLIT, with a text, a label and a language in every row, and with its second text or its choices where
    the task reads such. A baseline runs when what it needs is given: encoder alone, translate-test, LLM alone.

    The output folder gets eval.json, eval.md and eval.png; the last line on stdout is the summary as JSON.
    """
    prepare()
    check_output_folder(out, force=force, marker=REPORT_NAME)
    if translator is not None and teacher is None:
        raise UsageError("--translator needs --teacher, which reads the translations")
    if train_where and train is None:
        raise UsageError("--train-where chooses rows of --train, which is not given")
    from mtllm_edge_train.evaluation import chart, language_groups, tables
    from mtllm_edge_train.evaluation.data import Layout, check_labels, read_by_language, read_training_rows
    from mtllm_edge_train.evaluation.model_under_test import open_subject
    from mtllm_edge_train.evaluation.prediction_cache import Answers
    from mtllm_edge_train.evaluation.report import make_report
    from mtllm_edge_train.evaluation.systems import TITLES, Systems

    subject = open_subject(model, task)
    layout = Layout(subject.kind, text_column, Columns(pair_column, choices_column), label_column, language_column)
    rows = read_by_language(data, layout, _conditions(where))
    check_labels(rows, subject.labels, task)
    answers = Answers(cache or out.with_name(f"{out.name}.partial"))
    training = None
    if train is not None:
        training = read_training_rows(train, layout, _conditions(train_where), language=train_language)
        check_labels({train_language: training}, subject.labels, task)
    made = Systems(subject, [*rows], answers, chosen_device(device), threads)
    systems, left_out = made.choose(
        train=training, train_language=train_language, teacher=teacher, translator=translator
    )
    chosen = language_groups.language_groups(
        [*rows],
        source=train_language,
        seen=None if seen is None else language_groups.read_seen(seen, [*rows]),
        sentences=None if resources is None else language_groups.read_sentences(resources),
    )
    console.note(f"{task} ({subject.kind}): {dict(sorted(_label_counts(rows).items()))}")
    if training is not None:
        console.note(f"training {training.summary}")
    descriptions = {system.id: system.description for system in systems}
    found = {}
    try:
        while systems:
            system = systems.pop(0)  # so that its models leave the memory before the next one's are loaded
            found[system.id] = _ask(system, TITLES[system.id], rows)
    except KeyboardInterrupt:
        console.note("stopped; repeat the command to go on, what was answered is kept")
        ctx.exit(130)
    report = make_report(
        rows,
        found,
        chosen,
        model=subject.name,
        task=task,
        systems=descriptions,
        left_out=left_out,
        resamples=resamples,
        seed=seed,
    )
    shown = measure.replace("-", "_")
    with atomic_folder(out, force=force, marker=REPORT_NAME) as folder:
        folder.joinpath(REPORT_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        folder.joinpath("eval.md").write_text(tables.markdown(report), encoding="utf-8")
        chart.save_chart(report, shown, folder / "eval.png")
    if cache is None:
        answers.forget()
    console.print_stdout(tables.terminal_view(report, shown))
    click.echo(msgspec.json.encode(report.summary()).decode())


def _label_counts(rows: dict[str, LabeledTexts]) -> Counter[str]:
    """Texts per label, in all languages together."""
    return Counter(label for labelled in rows.values() for label in labelled.labels)


def _ask(system: System, title: str, rows: dict[str, LabeledTexts]) -> dict[str, list[str]]:
    """A system's labels for all texts of each language."""
    total = sum(len(labelled.texts) for labelled in rows.values())
    console.note(f"{title}: {console.count(total, 'text')} in {console.count(len(rows), 'language')}")
    found: dict[str, list[str]] = {}
    with progress_bar(total) as progress:
        for language, labelled in rows.items():
            found[language] = []
            for start in range(0, len(labelled.texts), _CHUNK):
                chunk = labelled.inputs[start : start + _CHUNK]
                try:
                    found[language] += system.answer(chunk, language)
                except DataError as error:
                    raise DataError(f"{title}, {language}, from text {start} on: {error}") from None
                progress(len(chunk))
    return found


def _conditions(arguments: Sequence[str]) -> dict[str, set[str]]:
    conditions: dict[str, set[str]] = defaultdict(set)
    for argument in arguments:
        column, separator, value = argument.partition("=")
        if not separator or not column:
            raise UsageError(f"{argument!r} is not COLUMN=VALUE; name the column, then the value of the rows to take")
        conditions[column].add(value)
    return conditions
