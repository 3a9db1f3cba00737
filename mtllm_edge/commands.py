"""The commands of the runtime: classify, embed, info, verify, package, doctor.

The engines are imported inside the commands that compute, so that the others answer at once, and where an engine is
broken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
import msgspec

from mtllm_edge import doctor as checkup
from mtllm_edge import language_options, render
from mtllm_edge.answer_options import abstaining_options, long_option, other_columns_options
from mtllm_edge.bundle import Bundle
from mtllm_edge.calibration import abstention
from mtllm_edge.columns import Columns
from mtllm_edge.errors import EngineError, UsageError
from mtllm_edge.gpu import GpuLayers
from mtllm_edge.gpu_options import gpu_layers_option
from mtllm_edge.jobs.performing import Order, perform, sources_of
from mtllm_edge.jobs.reading import Asked, Request
from mtllm_edge.jobs.running import Answer, Model
from mtllm_edge.jobs.writing import FORMS
from mtllm_edge.language_options import RowLanguages
from mtllm_edge.manifest import LlmBackend
from mtllm_edge.trial import try_bundle
from mtllm_edge.windows import Long, check_long

if TYPE_CHECKING:
    from mtllm_edge.classifier import Prediction

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
_INPUTS_HELP = """TEXTS are texts, or files of texts: .txt with a text per line; .csv, .tsv and .jsonl, these four also
as .gz and .zst; .parquet and .xlsx (its first sheet); or folders and globs of them. The text is in the column 'text',
or in the one that --text-column names, or in the only one, or in the one with the longest texts. '-', or nothing at
all, reads a text per line from a pipe. All is UTF-8; blank lines are left out.

With --output, files of any size are read in little memory; rows that cannot be read go to NAME.rejected.csv beside it.
A command that was killed goes on where it was when it is repeated; until then its work is in the folder .NAME.job."""
_KINDS_HELP = """

A task of pairs needs files with columns, and in them a second one, 'text_pair'. One of multiple choice needs
'choices', a list (in csv, as JSON); its label is the number of a choice, the first being 0. `mtllm-edge info` shows
what each task reads."""


_texts = click.argument("texts", metavar="[TEXTS]...", nargs=-1)
_bundle = click.option(
    "-b", "--bundle", type=_PATH, required=True, metavar="BUNDLE", help="The model: a folder, or an installed bundle."
)


def _output_options(command: _Command) -> _Command:
    """What classify and embed share on what to do with the output, in the order of `--help`."""
    options: list[Callable[[_Command], _Command]] = [
        click.option("--strict", is_flag=True, help="Stop at the first row that cannot be read, before any work."),
        click.option("--force", is_flag=True, help="Replace the --output file if it exists."),
        click.option("--restart", is_flag=True, help="Throw away what an interrupted run did, and start anew."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _reading_options(command: _Command) -> _Command:
    """What classify and embed share on how to read the texts, in the order of `--help`."""
    options: list[Callable[[_Command], _Command]] = [
        language_options.lang,
        language_options.language_column,
        click.option("--text-column", metavar="NAME", help="Column that holds the text."),
        click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; by default what suits."),
        click.option(
            "--llm-backend",
            type=click.Choice(["auto", *get_args(LlmBackend)]),
            default="auto",
            show_default=True,
            callback=lambda _context, _option, value: None if value == "auto" else value,
            help="Form of the LLM, in a bundle that has several; auto takes the faster one here.",
        ),
        gpu_layers_option,
    ]
    command = language_options.notes_on_languages(command)
    for option in reversed(options):
        command = option(command)
    return command


@click.command(epilog=_INPUTS_HELP + _KINDS_HELP)
@_texts
@_bundle
@click.option("-t", "--task", metavar="NAME", help="The task; may be left out where the model has only one.")
@_reading_options
@other_columns_options
@long_option("cut", "pool", "vote")
@abstaining_options
@click.option(
    "-o", "--output", type=_PATH, metavar="FILE", help="Write this file: .csv, .tsv, .jsonl, .parquet or .xlsx."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", *FORMS.values()]),
    help="By default what the name of --output says; else a table on a terminal and csv in a pipe.",
)
@_output_options
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
    long: Long,
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
    or identified, there is a column language, and a table at the end tells what was found in each; with --long pool or
    vote a column windows; where the task may abstain, its label then is 'unsure', and a column abstained says so. Where
    the input has a column of that name already, the new one is called predicted_label and so on.
    """
    form = form or _form_of(output, FORMS, ("table", "csv"))
    if output is None and form in ("parquet", "xlsx"):
        raise UsageError(f"--format {form} needs a file; name it with --output")
    sources = sources_of(texts, text_column, output)
    opened = Bundle.open(bundle)
    task = opened.task_name(task)
    part = opened.manifest.tasks[task]
    columns = Columns(pair_column, choices_columns)
    columns.check(part.kind)
    check_long(long, part.kind, f"task {task!r}")
    languages = RowLanguages(opened.manifest, language, language_column)
    more = ["language"] * languages.asked + ["windows"] * (long != "cut")
    more += ["abstained"] * (abstention(part, threshold, abstain)[0] > 0)
    more += ["probabilities"] * (form in ("jsonl", "parquet"))

    @contextmanager
    def load() -> Iterator[Model]:
        with render.busy("loading the model"):
            from mtllm_edge.classifier import Classifier

            classifier = Classifier.load(
                opened, task=task, threads=threads, llm_backend=llm_backend, gpu_layers=gpu_layers
            )

        def answer(rows: Sequence[Asked], progress: Callable[[int], None]) -> list[Answer]:
            spoken, texts = zip(*rows, strict=True)
            predictions = classifier.classify(
                texts, language=spoken, long=long, threshold=threshold, abstain=abstain, progress=progress
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
        "--long": long,
        "--threshold": None if threshold is None else str(threshold),
        "--abstain": abstain,
    }
    perform(
        Order(
            command="classify",
            bundle=opened,
            sources=sources,
            request=Request(part.kind, text_column, columns, languages.of if languages.asked else None),
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


@click.command(epilog=_INPUTS_HELP)
@_texts
@_bundle
@_reading_options
@long_option("cut", "pool")
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="Write this file: .npy, .jsonl or .parquet.")
@_output_options
def embed(
    texts: tuple[str, ...],
    bundle: Path,
    *,
    language: str | None,
    language_column: str | None,
    text_column: str | None,
    threads: int | None,
    llm_backend: LlmBackend | None,
    gpu_layers: GpuLayers,
    long: Long,
    output: Path | None,
    strict: bool,
    force: bool,
    restart: bool,
) -> None:
    """Turn texts into vectors.

    A .npy file holds one float32 row per text, in the order of the input. jsonl, which is also what a pipe gets, and
    parquet keep the input's columns and add embedding, truncated, language where it is given or identified, and windows
    where texts are read in them.
    """
    forms = {".npy": "npy", ".jsonl": "jsonl", ".parquet": "parquet"}
    form = _form_of(output, forms, ("jsonl", "jsonl"))
    sources = sources_of(texts, text_column, output)
    opened = Bundle.open(bundle)
    languages = RowLanguages(opened.manifest, language, language_column)

    @contextmanager
    def load() -> Iterator[Model]:
        with render.busy("loading the model"):
            from mtllm_edge.embedder import Embedder

            embedder = Embedder.load(opened, threads=threads, llm_backend=llm_backend, gpu_layers=gpu_layers)

        def answer(rows: Sequence[Asked], progress: Callable[[int], None]) -> list[Answer]:
            spoken, texts = zip(*rows, strict=True)
            windows = embedder.windows(texts, language=spoken, long=long)
            pooled_NE = windows.mean(embedder.pool(windows.encoded, progress=windows.in_texts(progress)))
            # 9 significant digits give every float32 back exactly
            return [
                {"embedding": [float(f"{x:.9g}") for x in pooled_E], "truncated": text[0].truncated}
                | ({"language": text[0].language} if languages.asked else {})
                | ({"windows": len(text)} if long != "cut" else {})
                for pooled_E, text in zip(pooled_NE, windows.texts, strict=True)
            ]

        with embedder:
            yield answer

    perform(
        Order(
            command="embed",
            bundle=opened,
            sources=sources,
            request=Request(text_column=text_column, language=languages.of if languages.asked else None),
            form=form,
            output=output,
            options={
                "--lang": language,
                "--language-column": language_column,
                "--text-column": text_column,
                "--llm-backend": llm_backend,
                "--long": long,
            },
            strict=strict,
            force=force,
            restart=restart,
        ),
        load,
    )


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is.")
def info(bundle: Path, *, as_json: bool) -> None:
    """Show what a model bundle is made of, and its licences."""
    manifest = Bundle.open(bundle).manifest
    if as_json:
        click.echo(manifest.to_json(), nl=False)
    else:
        render.show(render.manifest_view(manifest))


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--deep", is_flag=True, help="Also load and run it, in a process of its own.")
def verify(bundle: Path, *, deep: bool) -> None:
    """Compare every file of a model bundle with its recorded SHA-256."""
    opened = Bundle.open(bundle)
    with render.busy("reading every file"):
        opened.verify()
    files = opened.manifest.files
    size = sum(file.size for file in files.values())
    summary = f"{render.count(len(files), 'file')}, {render.megabytes(size)}, all as recorded"
    if deep:
        with render.busy("running it in a child process"):
            trial = try_bundle(opened.path)
        summary += f"; {trial.texts} texts ran in a child process in {trial.seconds:.1f} s"
    click.echo(summary)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--name", required=True, help="The name by which the installed bundle is found.")
@click.option("-o", "--output", type=_PATH, required=True, metavar="FOLDER", help="Where the wheel goes.")
@click.option("--version", default="1.0", show_default=True, help="The wheel's version.")
@click.option("--force", is_flag=True, help="Replace an existing wheel.")
def package(bundle: Path, *, name: str, output: Path, version: str, force: bool) -> None:
    """Write a BUNDLE as a wheel that pip installs; it is used by its name then, without a folder."""
    from mtllm_edge.packaging import write_wheel

    opened = Bundle.open(bundle)
    with render.busy("writing the wheel"):
        wheel = write_wheel(opened, name, output, version=version, force=force)
    click.echo(wheel)
    for source in opened.manifest.sources:
        if render.is_non_commercial(source.license):
            render.note(f"note: {source.part} ({source.name}) is under {source.license}: NON-COMMERCIAL USE ONLY")
    if not opened.manifest.sources:
        render.note("note: the bundle names no source and no licence; say under which terms it may be used")


@click.command()
@click.argument("bundle", type=_PATH, required=False)
@gpu_layers_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(bundle: Path | None, *, gpu_layers: GpuLayers, as_json: bool) -> None:
    """Show what is installed and whether it works here.

    With a BUNDLE, its model is tried in a process of its own, with --gpu-layers also on the GPU, and the settings that
    are safe here are shown.
    """
    if bundle is None and gpu_layers != 0:
        raise UsageError("--gpu-layers tries a model on a GPU; name its BUNDLE, too")
    opened = None if bundle is None else Bundle.open(bundle)
    with render.busy("asking the engines"):
        report = checkup.examine(opened, gpu_layers)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        render.show(render.facts_table(report.facts()))
        for advice in report.advice:
            click.echo(f"\n{advice}")  # not wrapped: it is there to be copied
    if report.faults:
        raise EngineError("; ".join(report.faults))


def _form_of(output: Path | None, by_suffix: dict[str, str], without: tuple[str, str]) -> str:
    """The form of the results; `without` an output file, that for a terminal and that for a pipe."""
    if output is None:
        if sys.stdout is None:
            raise UsageError("the standard output is closed; name a file with --output")
        return without[0] if sys.stdout.isatty() else without[1]
    try:
        return by_suffix[output.suffix.lower()]
    except KeyError:
        *others, last = by_suffix
        raise UsageError(f"--output {output} should end in {', '.join(others)} or {last}") from None
