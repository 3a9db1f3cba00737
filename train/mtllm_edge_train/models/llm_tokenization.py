"""How the LLM reads by itself, as the teacher does: texts, pairs, and texts with choices in its own tokens.

LLM tokenizers have no template for a pair, so the parts stand on lines of their own: a newline is between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtllm_edge.errors import DataError
from mtllm_edge.inputs import Input, kind_of, parts_of
from mtllm_edge.tokenization.encoding import Encoding, SpecialTokenTemplate


def tokenize(tokenizer: Any, items: Sequence[Input], *, max_tokens: int) -> list[Encoding]:
    """Tokens of what the LLM reads; `mtllm_edge.tokenization.encoding.SpecialTokenTemplate.join` says what is cut.

    Args:
        tokenizer: The LLM's own, of transformers.
        items: English texts, pairs, or texts with choices.
        max_tokens: Longest reading.

    Raises:
        DataError: A text has more choices than `max_tokens` can hold.
    """
    frame = special_token_template(tokenizer)
    readings = iter(_bare(tokenizer, [part for item in items for part in parts_of(item)]))
    encoded = []
    for item in items:
        parts = [next(readings) for _ in parts_of(item)]
        if frame.min_length(len(parts)) > max_tokens:
            raise DataError(f"{item[0][:40]!r} has {len(parts)} parts, more than fit into {max_tokens} tokens")
        encoded.append(frame.join(parts, choices=kind_of(item) == "multiple_choice", max_tokens=max_tokens))
    return encoded


def _bare(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def special_token_template(tokenizer: Any) -> SpecialTokenTemplate:
    """The LLM's own special tokens around a text (of many LLMs a first one, of some none), a newline between parts."""
    framed: list[int] = tokenizer("a")["input_ids"]
    bare, newline = _bare(tokenizer, ["a", "\n"])
    start = next(place for place in range(len(framed)) if framed[place : place + len(bare)] == bare)
    return SpecialTokenTemplate(framed[:start], newline, framed[start + len(bare) :])


MAX_TOKENS = 512
"""Longer texts lose their end."""
