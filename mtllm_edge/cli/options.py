"""Options and arguments that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from mtllm_edge import safe_text
from mtllm_edge.backends.probing.gpu import GpuLayers, check_gpu_layers
from mtllm_edge.bundle.manifest import UNSURE, LlmBackend
from mtllm_edge.extras import require
from mtllm_edge.files.columns import LABEL_COLUMN
from mtllm_edge.languages.resolver import is_auto
from mtllm_edge.tokenization.windows import LongTexts

_Command = TypeVar("_Command", bound=Callable[..., Any])

INPUTS_HELP = """TEXTS are texts, or files of texts: .txt with one text per line; .csv, .tsv and .jsonl, these four also
as .gz and .zst; .parquet and .xlsx (first sheet); or folders and globs of such files. The text is in the column 'text'
or the one named by --text-column; otherwise in the only column, or in the one with the longest texts. Without
arguments, and for '-', one text per line is read from standard input. All input is UTF-8; blank lines are skipped.

With --output, files of any size need little memory, and rows that cannot be read are written to NAME.rejected.csv next
to it. Repeat an interrupted command to continue it; until it is finished, its state is in the folder .NAME.job."""
KINDS_HELP = """

A task on pairs needs files with a second column, 'text_pair'. A multiple-choice task needs the column 'choices',
a list (in csv, as JSON); its label is the number of a choice, counted from 0. `mtllm-edge info` shows the kind of each
task."""
PATH = click.Path(path_type=Path)
PROBABILITY = click.FloatRange(0, 1)


def option_group(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Return a decorator that adds several options, listed by `--help` in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _require_identifier(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Raise UsageError for `auto` if the extra [lang] is missing."""
    if value is not None and is_auto(value):
        require("lang", "py3langid")
    return value


def _parse_gpu_layers(_context: click.Context, _option: click.Parameter, value: str) -> GpuLayers:
    return check_gpu_layers(int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else value)


bundle_option = click.option(
    "-b", "--bundle", type=PATH, required=True, metavar="BUNDLE", help="The model: a folder or an installed bundle."
)
task_option = click.option("-t", "--task", metavar="NAME", help="The task; optional if the bundle has only one.")
texts_argument = click.argument("texts", metavar="[TEXTS]...", nargs=-1)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; by default the available cores, at most 8."
)
llm_backend_option = click.option(
    "--llm-backend",
    type=click.Choice(["auto", *get_args(LlmBackend)]),
    default="auto",
    show_default=True,
    callback=lambda _context, _option, value: None if value == "auto" else value,
    help="Backend of the LLM if the bundle supports several; auto takes the faster one on this machine.",
)
gpu_layers_option = click.option(
    "--gpu-layers",
    metavar="N",
    default="0",
    show_default=True,
    callback=_parse_gpu_layers,
    help="LLM layers to offload to a GPU, or 'all'; the encoder is offloaded, too. Needs llama.cpp built for GPUs.",
)
language_option = click.option(
    "--lang",
    "--language",
    "language",
    metavar="CODE",
    callback=_require_identifier,
    help="Language of the texts, as a code or an English name, or 'auto' to identify it (extra [lang]). Required by "
    "encoders with language tokens; for others it is only reported.",
)
language_column_option = click.option(
    "--language-column", metavar="NAME", help="Column with the language of each row; --lang is for empty cells."
)
second_columns_options = option_group(
    click.option("--pair-column", metavar="NAME", help="Column of a pair's second text; by default 'text_pair'."),
    click.option(
        "--choices-column",
        "choices_columns",
        metavar="NAME",
        multiple=True,
        help="Column of the choices; by default 'choices'. If given several times, each column has one choice.",
    ),
)
labeled_files_options = option_group(
    click.argument("files", metavar="FILES...", nargs=-1, required=True),
    click.option("--text-column", metavar="NAME", help="Column of the text.  [default: text]"),
    click.option("--label-column", metavar="NAME", default=LABEL_COLUMN, show_default=True, help="Label column."),
)
long_option = click.option(
    "--long",
    "long_texts",
    type=click.Choice(get_args(LongTexts)),
    default="cut",
    show_default=True,
    help="Texts longer than the model takes: cut drops their end, as in training; pool reads them in overlapping "
    "windows and averages the windows' vectors.",
)
input_options = option_group(
    language_option,
    language_column_option,
    click.option("--text-column", metavar="NAME", help="Column of the text."),
    threads_option,
    llm_backend_option,
    gpu_layers_option,
)
abstention_options = option_group(
    click.option(
        "--threshold",
        type=PROBABILITY,
        metavar="P",
        help="Abstain below this confidence; by default that of the task, 0 never abstains.",
    ),
    click.option(
        "--abstain", metavar="LABEL", help=f"Label of abstentions; by default that of the task, or {UNSURE!r}."
    ),
)
output_options = option_group(
    click.option("--strict", is_flag=True, help="Stop at the first row that cannot be read, before any work."),
    click.option("--force", is_flag=True, help="Replace the --output file if it exists."),
    click.option("--restart", is_flag=True, help="Discard the results of an interrupted run and start again."),
)
license_option = click.option(
    "--license",
    metavar="ID",
    help="License of the task for the manifest, as an SPDX identifier; by default none is recorded.",
)


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options that `classify` and `embed` share."""

    texts: tuple[str, ...]
    bundle: Path
    language: str | None
    language_column: str | None
    text_column: str | None
    threads: int | None
    llm_backend: LlmBackend | None
    gpu_layers: GpuLayers
    long_texts: LongTexts
    output: Path | None
    """None is standard output; then there is no journal, and the first bad row is an error."""
    strict: bool
    force: bool
    restart: bool

    @property
    def engines(self) -> dict[str, Any]:
        """Parameters of `Embedder.load` and `Classifier.load`."""
        return {"threads": self.threads, "llm_backend": self.llm_backend, "gpu_layers": self.gpu_layers}


def pass_batch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pass the shared options as one `BatchOptions`, the others by name."""

    @wraps(command)
    def decorated(**parameters: Any) -> None:
        shared = {field.name: parameters.pop(field.name) for field in fields(BatchOptions)}
        command(BatchOptions(**shared), **parameters)

    return decorated


def source_name(files: Sequence[str]) -> str:
    """Return the name of a task's training files for the manifest."""
    names = [safe_text.printable(Path(file).name) for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
