"""The inputs of the three kinds of tasks.

``sequence``
    A text, such as ``"The hotel was good."``. Its vector is the mean over its tokens, and the head has a row per label.
``pair``
    Two texts, ``("A man sleeps.", "Nobody is awake.")``, encoded together by the pair template of the encoder's
    tokenizer; vector and head are as for one text.
``multiple_choice``
    A text and its choices, ``("The glass fell.", ["It broke.", "It sang."])``, encoded together like a pair with more
    than two texts. Every choice has a vector, the mean over its own tokens, and the head gives each a score: softmax
    over the choices (the paper's method for Belebele, arXiv 2406.12739). Encoding the text again with every choice
    would cost one forward pass per choice, and no choice could attend to another. With causal attention in the LLM, a
    choice attends to those before it alone; teacher and student have the same order, so the student can learn this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from mtllm_edge.errors import DataError

Kind: TypeAlias = Literal["sequence", "pair", "multiple_choice"]
Input: TypeAlias = str | tuple[str, str] | tuple[str, Sequence[str]]
"""A text, a pair of texts, or a text with its choices."""

_SHAPES: dict[Kind | None, str] = {
    "sequence": "one text",
    "pair": "a pair (text, text_pair)",
    "multiple_choice": "a text with its choices (text, [choice, choice ...])",
    None: "none of a text, a pair and a text with choices",
}


def kind_of(item: Input) -> Kind | None:
    """Return the kind of task for an input; None for an invalid one."""
    if not isinstance(item, (tuple, list)):
        return "sequence"
    if len(item) != 2 or not isinstance(item[0], str):
        return None
    if isinstance(item[1], (tuple, list)):
        return "multiple_choice"
    return "pair" if isinstance(item[1], str) else None


def check_kind(items: Sequence[Input], kind: Kind, task: str) -> None:
    """Raise DataError, with the index, for an input of another kind; `task` is the name of the task in messages."""
    for index, item in enumerate(items):
        if (item_kind := kind_of(item)) != kind:
            raise DataError(f"{task} reads {_SHAPES[kind]} at a time, but text {index} is {_SHAPES[item_kind]}")


def parts_of(item: Input) -> list[str]:
    """Return the texts of an input in their order."""
    if not isinstance(item, (tuple, list)):
        return [item]
    text, second = item
    return [text, second] if isinstance(second, str) else [text, *second]


def replace_parts(item: Input, parts: Sequence[str]) -> Input:
    """Return an input of the same kind with other texts, as many as `parts_of` returns."""
    if not isinstance(item, (tuple, list)):
        return parts[0]
    return (parts[0], parts[1]) if isinstance(item[1], str) else (parts[0], tuple(parts[1:]))


def vector_count(item: Input) -> int:
    """Return the number of vectors of an input: one, or one per choice."""
    return len(item[1]) if kind_of(item) == "multiple_choice" else 1


def part_name(item: Input, part: int, index: int) -> str:
    """Return the name of a text of an input in messages, both counted from 0."""
    if part == 0:
        return f"text {index}"
    return f"choice {part - 1} of text {index}" if kind_of(item) == "multiple_choice" else f"second text {index}"
