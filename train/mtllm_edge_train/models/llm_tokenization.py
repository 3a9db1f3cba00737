"""Tokenization of texts, pairs, and texts with choices for the LLM without an encoder, as in the teacher.

LLM tokenizers have no template for pairs, so a newline separates the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtllm_edge.errors import DataError
from mtllm_edge.inputs import Input, kind_of, parts_of
from mtllm_edge.tokenization.encoding import Encoding, SpecialTokenTemplate


def tokenize(tokenizer: Any, items: Sequence[Input], *, max_tokens: int) -> list[Encoding]:
    """Tokenize English inputs for the LLM; see `SpecialTokenTemplate.join` for the truncation.

    Raises:
        DataError: A text has more choices than `max_tokens` can hold.
    """
    template = special_token_template(tokenizer)
    ids = iter(_token_ids(tokenizer, [part for item in items for part in parts_of(item)]))
    encoded = []
    for item in items:
        parts = [next(ids) for _ in parts_of(item)]
        if template.min_length(len(parts)) > max_tokens:
            raise DataError(f"{item[0][:40]!r} has {len(parts)} parts, more than fit into {max_tokens} tokens")
        encoded.append(template.join(parts, choices=kind_of(item) == "multiple_choice", max_tokens=max_tokens))
    return encoded


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def special_token_template(tokenizer: Any) -> SpecialTokenTemplate:
    """Return the special tokens of the LLM, such as a BOS token or none, with a newline between parts."""
    ids: list[int] = tokenizer("a")["input_ids"]
    text, newline = _token_ids(tokenizer, ["a", "\n"])
    start = next(i for i in range(len(ids)) if ids[i : i + len(text)] == text)
    return SpecialTokenTemplate(ids[:start], newline, ids[start + len(text) :])


MAX_TOKENS = 512
"""Longer texts are truncated."""
