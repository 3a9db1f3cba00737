"""A tokenizer of numbered words, and random texts with a given number of tokens, for models with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
PREFIX_TOKENS, SUFFIX_TOKENS = ("<s>",), ("</s>",)
"""Special tokens around a text, as many as NLLB has."""


def write_tokenizer(path: Path, size: int, *, specials: tuple[str, ...] = SPECIAL_TOKENS) -> None:
    """Write a tokenizer that maps words ``t<id>``, separated by spaces, to their ids."""
    words = [*specials, *(f"t{index}" for index in range(len(specials), size))]
    added = [
        {"id": index, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for index, token in enumerate(specials)
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: index for index, word in enumerate(words)},
            "unk_token": "<unk>" if "<unk>" in specials else words[0],
        },
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def random_texts(lengths: list[int], vocabulary: int, *, seed: int = 0) -> list[str]:
    """Return a text of random words for each length, in tokens without special tokens."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"t{index}" for index in rng.integers(len(SPECIAL_TOKENS), vocabulary, length)) for length in lengths
    ]
