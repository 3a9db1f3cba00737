"""Options that several commands over texts share: on their columns, on long texts, on when a task abstains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from mtllm_edge.manifest import UNSURE

_Command = TypeVar("_Command", bound=Callable[..., Any])

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


def long_option(*ways: str) -> Callable[[_Command], _Command]:
    """How texts longer than the encoder takes are read, in some of the ways of `mtllm_edge.windows.Long`."""
    vote = ", or their answers are (vote)" if "vote" in ways else ""
    return click.option(
        "--long",
        type=click.Choice(ways),
        default="cut",
        show_default=True,
        help="Texts longer than the model takes are cut at the end, as in training, or read in windows whose vectors "
        f"are averaged (pool){vote}.",
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
