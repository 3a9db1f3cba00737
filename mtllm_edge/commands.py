"""The commands of the runtime: classify, embed, info, verify, package, doctor.

The engines are imported inside the commands that compute, so that the others answer at once, and where an engine is
broken.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, get_args

import click
import msgspec

from mtllm_edge import doctor as checkup
from mtllm_edge import outputs, render
from mtllm_edge.bundle import Bundle
from mtllm_edge.columns import Columns, inputs_of
from mtllm_edge.errors import EngineError, UsageError
from mtllm_edge.gpu import GpuLayers
from mtllm_edge.gpu_options import gpu_layers_option
from mtllm_edge.kinds import Input, parts_of
from mtllm_edge.manifest import LlmBackend
from mtllm_edge.sheets import STDIN, Sheet, read_sheet
from mtllm_edge.trial import try_bundle

if TYPE_CHECKING:
    from mtllm_edge.classifier import Prediction

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
_INPUTS_HELP = """TEXTS are texts, or files of texts: .txt with a text per line; .csv and .jsonl with a column 'text',
or the one that --text-column names, or the only one. '-', or nothing at all, reads a text per line from a pipe. All is
UTF-8; blank lines are left out."""
_KINDS_HELP = """

A task of pairs needs csv or jsonl files, and in them a second column, 'text_pair'. One of multiple choice needs
'choices', a list (in csv, as JSON); its label is the number of a choice, the first being 0. `mtllm-edge info` shows
what each task reads."""


_texts = click.argument("texts", metavar="[TEXTS]...", nargs=-1)
_bundle = click.option(
    "-b", "--bundle", type=_PATH, required=True, metavar="BUNDLE", help="The model: a folder, or an installed bundle."
)
_force = click.option("--force", is_flag=True, help="Replace the --output file if it exists.")


def _reading_options(command: _Command) -> _Command:
    """What classify and embed share on how to read the texts, in the order of `--help`."""
    options: list[Callable[[_Command], _Command]] = [
        click.option("--language", metavar="CODE", help="Language of all texts, for encoders that must be told."),
        click.option("--text-column", metavar="NAME", help="Column of csv and jsonl files that holds the text."),
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
    for option in reversed(options):
        command = option(command)
    return command


@click.command(epilog=_INPUTS_HELP + _KINDS_HELP)
@_texts
@_bundle
@click.option("-t", "--task", metavar="NAME", help="The task; may be left out where the model has only one.")
@_reading_options
@click.option("--pair-column", metavar="NAME", help="Column of a pair's second text; by default 'text_pair'.")
@click.option(
    "--choices-column",
    "choices_columns",
    metavar="NAME",
    multiple=True,
    help="Column of the choices; by default 'choices'. Given several times, each column is one choice.",
)
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="Write this file: .csv or .jsonl.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl"]),
    help="By default what the name of --output says; else a table on a terminal and csv in a pipe.",
)
@_force
def classify(
    texts: tuple[str, ...],
    bundle: Path,
    *,
    task: str | None,
    language: str | None,
    text_column: str | None,
    pair_column: str | None,
    choices_columns: tuple[str, ...],
    threads: int | None,
    llm_backend: LlmBackend | None,
    gpu_layers: GpuLayers,
    output: Path | None,
    form: str | None,
    force: bool,
) -> None:
    """Classify texts in many languages.

    csv and jsonl results keep the input's columns and add label, confidence, and truncated: whether the text was longer
    than the model takes and lost its end. jsonl also has the probability of every label. Where the input has a column
    of that name already, the new one is called predicted_label and so on.
    """
    form = form or _form_of(output, {".csv": "csv", ".jsonl": "jsonl"}, ("table", "csv"))
    sheet = _read(texts, text_column)
    opened = Bundle.open(bundle)
    inputs = _inputs(sheet, opened, task, Columns(pair_column, choices_columns))
    with _destination(output, force=force) as file:
        with render.busy("loading the model"):
            from mtllm_edge.classifier import Classifier

            classifier = Classifier.load(
                opened, task=task, threads=threads, llm_backend=llm_backend, gpu_layers=gpu_layers
            )
        with classifier, render.counting(len(inputs)) as progress:
            started = time.perf_counter()
            predictions = classifier.classify(inputs, language=language, progress=progress)
            seconds = time.perf_counter() - started
        if form == "table":
            table = render.predictions_table([" | ".join(parts_of(item)) for item in inputs], predictions)
            render.show(table) if output is None else file.write(render.to_bytes(table))
        else:
            _write_predictions(file, sheet, predictions, form)
    truncated = sum(prediction.truncated for prediction in predictions)
    _summarise(sheet, seconds, truncated, opened.manifest.encoder.max_tokens)


def _inputs(sheet: Sheet, bundle: Bundle, task: str | None, columns: Columns) -> list[Input]:
    """What the task reads, from the columns that its kind needs."""
    kind = bundle.manifest.tasks[bundle.task_name(task)].kind
    return inputs_of(sheet, kind, columns)


def _write_predictions(file: BinaryIO, sheet: Sheet, predictions: list[Prediction], form: str) -> None:
    wanted = ["label", "confidence", "truncated"] + (["probabilities"] if form == "jsonl" else [])
    names = _free_names(sheet, wanted)
    records = (
        record
        | {
            names["label"]: prediction.label,
            names["confidence"]: round(prediction.confidence, 6),
            names["truncated"]: prediction.truncated,
        }
        | ({names["probabilities"]: _rounded(prediction.probabilities)} if form == "jsonl" else {})
        for record, prediction in zip(sheet.records, predictions, strict=True)
    )
    if form == "jsonl":
        outputs.write_jsonl(file, records)
    else:
        outputs.write_csv(file, [*sheet.columns, *names.values()], records)


def _rounded(probabilities: dict[str, float]) -> dict[str, float]:
    return {label: round(probability, 6) for label, probability in probabilities.items()}


@click.command(epilog=_INPUTS_HELP)
@_texts
@_bundle
@_reading_options
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="Write this file: .npy or .jsonl.")
@_force
def embed(
    texts: tuple[str, ...],
    bundle: Path,
    *,
    language: str | None,
    text_column: str | None,
    threads: int | None,
    llm_backend: LlmBackend | None,
    gpu_layers: GpuLayers,
    output: Path | None,
    force: bool,
) -> None:
    """Turn texts into vectors.

    A .npy file holds one float32 row per text, in the order of the input. jsonl, which is also what a pipe gets, keeps
    the input's columns and adds embedding and truncated.
    """
    form = _form_of(output, {".npy": "npy", ".jsonl": "jsonl"}, ("jsonl", "jsonl"))
    sheet = _read(texts, text_column)
    opened = Bundle.open(bundle)
    with _destination(output, force=force) as file:
        with render.busy("loading the model"):
            from mtllm_edge.embedder import Embedder

            embedder = Embedder.load(opened, threads=threads, llm_backend=llm_backend, gpu_layers=gpu_layers)
        with embedder, render.counting(len(sheet.texts)) as progress:
            started = time.perf_counter()
            encoded = embedder.encode(sheet.texts, language=language)
            pooled_ND = embedder.pool(encoded, progress=progress)
            seconds = time.perf_counter() - started
        if form == "npy":
            outputs.write_npy(file, pooled_ND)
        else:
            names = _free_names(sheet, ["embedding", "truncated"])
            outputs.write_jsonl(
                file,
                # 9 significant digits give every float32 back exactly
                (
                    record
                    | {names["embedding"]: [float(f"{x:.9g}") for x in pooled_D], names["truncated"]: text.truncated}
                    for record, pooled_D, text in zip(sheet.records, pooled_ND, encoded, strict=True)
                ),
            )
    _summarise(sheet, seconds, sum(text.truncated for text in encoded), opened.manifest.encoder.max_tokens)


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
        return without[0] if sys.stdout.isatty() else without[1]
    try:
        return by_suffix[output.suffix.lower()]
    except KeyError:
        raise UsageError(f"--output {output} should end in {' or '.join(by_suffix)}") from None


def _read(texts: tuple[str, ...], text_column: str | None) -> Sheet:
    if not texts and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("no texts; give some in quotes, name a file of texts, or pipe them in")
    return read_sheet(texts or (STDIN,), read_stdin=_read_stdin, text_column=text_column)


def _read_stdin() -> bytes:
    # Piece by piece: one read to the end would not notice a Ctrl-C that comes while data flow.
    return b"".join(iter(lambda: sys.stdin.buffer.read(65536), b""))


@contextmanager
def _destination(output: Path | None, *, force: bool) -> Iterator[BinaryIO]:
    if output is not None:
        with outputs.replacing(output, force=force) as file:
            yield file
        return
    yield sys.stdout.buffer
    sys.stdout.flush()


def _free_names(sheet: Sheet, wanted: list[str]) -> dict[str, str]:
    names = outputs.free_names(wanted, sheet.columns)
    for name, free in names.items():
        if name != free:
            render.note(f"note: the input has a column {name!r}; the new one is called {free!r}")
    return names


def _summarise(sheet: Sheet, seconds: float, truncated: int, max_tokens: int) -> None:
    if sheet.skipped:
        render.note(f"note: {render.count(sheet.skipped, 'blank line')} left out")
    if truncated:
        render.note(f"note: {render.count(truncated, 'text')} longer than {max_tokens} tokens lost the end")
    rate = len(sheet.texts) / max(seconds, 1e-9)
    render.note(f"{render.count(len(sheet.texts), 'text')} in {seconds:.1f} s, {rate:.1f} texts/s")
