"""Options and arguments that several commands share."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from mtllm_edge import console, safe_text
from mtllm_edge.backends.probing.offload import GpuLayers, GpuWarning, check_gpu_layers
from mtllm_edge.bundle.manifest import UNSURE, LlmBackend
from mtllm_edge.cli.warnings import print_language_warnings
from mtllm_edge.extras import require
from mtllm_edge.languages.resolver import is_auto
from mtllm_edge.tokenization.windows import LongTexts

_Command = TypeVar("_Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def gpu_layers_option(command: _Command) -> _Command:
    """Add the option, whose value comes as `gpu_layers`; what does not run on the GPU after all becomes a note."""

    @wraps(command)
    def noting(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            show = warnings.showwarning

            def note(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
                if issubclass(category, GpuWarning):
                    console.note(f"note: {message}")
                else:
                    show(message, category, *place, **more)

            warnings.simplefilter("always", GpuWarning)
            warnings.showwarning = note
            return command(*arguments, **options)

    option = click.option(
        "--gpu-layers",
        metavar="N",
        default="0",
        show_default=True,
        callback=_parse,
        help="Layers of the LLM that go to a GPU, or 'all', and the encoder with them; needs a llama.cpp for GPUs.",
    )
    return option(noting)  # type: ignore[return-value]


def _parse(_context: click.Context, _option: click.Parameter, value: str) -> GpuLayers:
    return check_gpu_layers(int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else value)


SHARE = click.FloatRange(0, 1)


def other_columns_options(command: _Command) -> _Command:
    """The columns that pairs and multiple choice read beside the text's."""
    choices = click.option(
        "--choices-column",
        "choices_columns",
        metavar="NAME",
        multiple=True,
        help="Column of the choices; by default 'choices'. Given several times, each column is one choice.",
    )
    pair = click.option("--pair-column", metavar="NAME", help="Column of a pair's second text; by default 'text_pair'.")
    return pair(choices(command))


long_option = click.option(
    "--long",
    "long_texts",
    type=click.Choice(get_args(LongTexts)),
    default="cut",
    show_default=True,
    help="Texts longer than the model takes: cut drops their end, as in training; pool reads them in overlapping "
    "windows and averages the windows' vectors.",
)


def abstaining_options(command: _Command) -> _Command:
    """When classify abstains, and what it says then."""
    label = click.option(
        "--abstain", metavar="LABEL", help=f"The label that is given then; by default the task's, or {UNSURE!r}."
    )
    threshold = click.option(
        "--threshold",
        type=SHARE,
        metavar="P",
        help="Abstain where the confidence is below it; by default the task's, 0 is never.",
    )
    return threshold(label(command))


INPUTS_HELP = """TEXTS are texts, or files of texts: .txt with a text per line; .csv, .tsv and .jsonl, these four also
as .gz and .zst; .parquet and .xlsx (its first sheet); or folders and globs of them. The text is in the column 'text',
or in the one that --text-column names, or in the only one, or in the one with the longest texts. '-', or nothing at
all, reads a text per line from a pipe. All is UTF-8; blank lines are left out.

With --output, files of any size are read in little memory; rows that cannot be read go to NAME.rejected.csv beside it.
A command that was killed goes on where it was when it is repeated; until then its work is in the folder .NAME.job."""
KINDS_HELP = """

A task of pairs needs files with columns, and in them a second one, 'text_pair'. One of multiple choice needs
'choices', a list (in csv, as JSON); its label is the number of a choice, the first being 0. `mtllm-edge info` shows
what each task reads."""


texts_argument = click.argument("texts", metavar="[TEXTS]...", nargs=-1)
bundle_option = click.option(
    "-b", "--bundle", type=PATH, required=True, metavar="BUNDLE", help="The model: a folder, or an installed bundle."
)


def output_options(command: _Command) -> _Command:
    """What classify and embed share on what to do with the output, in the order of `--help`."""
    options: list[Callable[[_Command], _Command]] = [
        click.option("--strict", is_flag=True, help="Stop at the first row that cannot be read, before any work."),
        click.option("--force", is_flag=True, help="Replace the --output file if it exists."),
        click.option("--restart", is_flag=True, help="Throw away what an interrupted run did, and start anew."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def input_options(command: _Command) -> _Command:
    """What classify and embed share on how to read the texts, in the order of `--help`."""
    options: list[Callable[[_Command], _Command]] = [
        language_option,
        language_column_option,
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
    command = print_language_warnings(command)
    for option in reversed(options):
        command = option(command)
    return command


def require_identifier(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Raise UsageError for `auto` where the extra [lang] is missing."""
    if value is not None and is_auto(value):
        require("lang", "py3langid")
    return value


language_option = click.option(
    "--lang",
    "--language",
    "language",
    metavar="CODE",
    callback=require_identifier,
    help="Language of the texts, for encoders that must be told, and for the summary: a code or an English name, or "
    "'auto', which tells it by the letters (extra [lang]).",
)
language_column_option = click.option(
    "--language-column",
    metavar="NAME",
    help="Column of csv and jsonl files that holds the language; where it is empty, --lang counts.",
)


license_option = click.option(
    "--license",
    "license",
    metavar="ID",
    help="License of the task, as an SPDX identifier, for the manifest; without it, none is claimed.",
)


def source_name(files: Sequence[str]) -> str:
    """What the manifest calls the files that a task came from."""
    names = [safe_text.printable(Path(file).name) for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
