"""The three kinds of tasks, and what each of them reads.

``sequence``
    A text, such as ``"The hotel was good."``. Its vector is the mean over all its tokens, and the head has a row per
    label.
``pair``
    Two texts, ``("A man sleeps.", "Nobody is awake.")``. They are read in one go, as the encoder's tokenizer puts a
    pair together; vector and head are as for one text.
``multiple_choice``
    A text and its choices, ``("The glass fell.", ["It broke.", "It sang."])``. All are read in one go, as if the pair
    had more than two texts. Every choice gets a vector of its own, the mean over its own tokens alone, and the head
    one score: softmax over the choices (the paper's form for Belebele, arXiv 2406.12739). The alternative, to read the
    text again with every choice, costs as many readings as there are choices, and lets no choice be weighed against
    another. Where the LLM's attention is causal a choice sees those before it and not those after it; teacher and
    student read in the same order, so the student can learn what the teacher makes of that.
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
    """The kind of task that reads something of this shape; None where none does."""
    if not isinstance(item, (tuple, list)):
        return "sequence"
    if len(item) != 2 or not isinstance(item[0], str):
        return None
    if isinstance(item[1], (tuple, list)):
        return "multiple_choice"
    return "pair" if isinstance(item[1], str) else None


def check_kind(items: Sequence[Input], kind: Kind, reader: str) -> None:
    """Refuse what a task cannot read.

    Args:
        items: What it is given.
        kind: The task's kind.
        reader: What the message calls the task.

    Raises:
        DataError: Something has another shape; the message gives its index.
    """
    for index, item in enumerate(items):
        if (found := kind_of(item)) != kind:
            raise DataError(f"{reader} reads {_SHAPES[kind]} at a time, but text {index} is {_SHAPES[found]}")


def parts_of(item: Input) -> list[str]:
    """The texts that are read one after the other."""
    if not isinstance(item, (tuple, list)):
        return [item]
    text, rest = item
    return [text, rest] if isinstance(rest, str) else [text, *rest]


def replace_parts(item: Input, parts: Sequence[str]) -> Input:
    """Something of the same kind with other texts, as many as `parts_of` gives."""
    if not isinstance(item, (tuple, list)):
        return parts[0]
    return (parts[0], parts[1]) if isinstance(item[1], str) else (parts[0], tuple(parts[1:]))


def vector_count(item: Input) -> int:
    """How many vectors it is turned into: one, or one per choice."""
    return len(item[1]) if kind_of(item) == "multiple_choice" else 1


def part_name(item: Input, part: int, index: int) -> str:
    """What messages call a part of the item at an index, both counted from 0."""
    if part == 0:
        return f"text {index}"
    return f"choice {part - 1} of text {index}" if kind_of(item) == "multiple_choice" else f"second text {index}"
