"""Vocabulary trimming and extension of Unigram tokenizers.

multilingual-e5-small has 250,002 pieces, four fifths of its parameters. Trimming keeps the most frequent pieces and all
single characters, so that every text can still be encoded; rare pieces are replaced by several shorter ones.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

_MIN_COUNT = 20
"""Occurrences of an unknown character for which pieces are learned."""


def count_pieces(tokenizer_json: str, texts: Iterable[Sequence[str]]) -> NDArray[np.int64]:
    """Frequency of each id in parts per billion, averaged over languages with equal weights: (vocabulary,)."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    shares = np.zeros(tokenizer.get_vocab_size())
    for number, part in enumerate(texts, start=1):
        encodings = tokenizer.encode_batch_fast(list(part), add_special_tokens=False)
        counts = np.bincount(np.concatenate([encoding.ids for encoding in encodings]), minlength=len(shares))
        shares += (counts / counts.sum() - shares) / number
    return np.ceil(shares * 1e9).astype(np.int64)


def add_prefix(tokenizer_json: str, text: str) -> str:
    """Add the pieces of a fixed text, such as `query:` for e5, to the special tokens before the encoded text.

    The tokenizer has a template post-processor that adds one token before the text.
    """
    encoding = tokenizers.Tokenizer.from_str(tokenizer_json).encode(text, add_special_tokens=False)
    document = json.loads(tokenizer_json)
    template = document["post_processor"]
    for name in ("single", "pair"):
        first, *rest = template[name]
        pieces = [{"SpecialToken": {"id": piece, "type_id": 0}} for piece in encoding.tokens]
        template[name] = [first, *pieces, *rest]
    for piece, index in zip(encoding.tokens, encoding.ids, strict=True):
        template["special_tokens"][piece] = {"id": piece, "ids": [index], "tokens": [piece]}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def trim_unigram(tokenizer_json: str, counts: NDArray[np.int64], size: int) -> tuple[str, NDArray[np.int64]]:
    """Keep `size` pieces: the special tokens, all single characters that occur, and the most frequent others.

    Returns:
        The new tokenizer file, and the old id of each new id: (size,), or more if more pieces must be kept.
    """
    document = json.loads(tokenizer_json)
    pieces: list[tuple[str, float]] = document["model"]["vocab"]
    special = {token["id"] for token in document["added_tokens"]} | {document["model"]["unk_id"]}
    special |= {index for token in document["post_processor"]["special_tokens"].values() for index in token["ids"]}
    needed = special | {i for i, (piece, _) in enumerate(pieces) if len(piece.lstrip("▁")) <= 1 and counts[i] > 0}
    by_count = [int(i) for i in np.argsort(-counts, kind="stable") if int(i) not in needed]
    kept = np.array(sorted([*needed, *by_count[: max(0, size - len(needed))]]), np.int64)
    new_id = {int(old): new for new, old in enumerate(kept)}
    document["model"]["vocab"] = [pieces[i] for i in kept]
    document["model"]["unk_id"] = new_id[document["model"]["unk_id"]]
    for token in document["added_tokens"]:
        token["id"] = new_id[token["id"]]
    for token in document["post_processor"]["special_tokens"].values():
        token["ids"] = [new_id[i] for i in token["ids"]]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")), kept


def add_pieces(tokenizer_json: str, texts: Sequence[str], size: int) -> tuple[str, int]:
    """Extend a Unigram vocabulary with pieces for scripts that it has no characters of.

    Of `size` pieces learned from words with an unknown character, those with such a character are added.

    Returns:
        The new tokenizer file, with the new pieces at the end, and their number.
    """
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    document = json.loads(tokenizer_json)
    vocabulary: list[tuple[str, float]] = document["model"]["vocab"]
    known = {character for piece, _ in vocabulary for character in piece} | {" "}
    normalizer = tokenizer.normalizer
    counts = Counter(itertools.chain.from_iterable(texts))
    unknown = {
        character
        for character in counts
        if not known.issuperset(normalizer.normalize_str(character) if normalizer else character)
    }
    rare = {character for character in unknown if counts[character] < _MIN_COUNT}
    words = [
        word
        for text in texts
        if not unknown.isdisjoint(text)
        for word in text.split()
        if not unknown.isdisjoint(word) and rare.isdisjoint(word)
    ]
    if not words:
        return tokenizer_json, 0
    learner = tokenizers.Tokenizer(tokenizers.models.Unigram())
    if normalizer:
        learner.normalizer = normalizer
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=size, show_progress=False)
    learner.train_from_iterator(words, trainer)
    learned = json.loads(learner.to_str())["model"]["vocab"]
    added = [[piece, score] for piece, score in learned if not known.issuperset(piece)]
    document["model"]["vocab"] = [*vocabulary, *added]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")), len(added)
