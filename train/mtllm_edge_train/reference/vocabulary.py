"""Cut a Unigram tokenizer down to the pieces that text in the wanted languages really uses.

multilingual-e5-small has 250,002 pieces, four fifths of its parameters. The most frequent pieces are kept, and all
single characters, so that every text stays writable; a rare piece is then spelled with shorter ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

_CHUNK = 20_000


def count_pieces(tokenizer_json: str, texts: Iterable[Sequence[str]]) -> NDArray[np.int64]:
    """How often each id occurs: (vocabulary,).

    Args:
        tokenizer_json: The tokenizer.
        texts: Lists of texts.
    """
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    counts = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for part in texts:
        for start in range(0, len(part), _CHUNK):
            for encoding in tokenizer.encode_batch_fast(list(part[start : start + _CHUNK]), add_special_tokens=False):
                np.add.at(counts, np.asarray(encoding.ids, np.int64), 1)
    return counts


def trim_unigram(tokenizer_json: str, counts: NDArray[np.int64], size: int) -> tuple[str, NDArray[np.int64]]:
    """Keep the special tokens, all single characters that occur, and the most frequent pieces.

    Args:
        tokenizer_json: A `tokenizers` file with a Unigram model.
        counts: Occurrences per id, as `count_pieces` returns them.
        size: Number of pieces to keep.

    Returns:
        The new tokenizer file, and the old id of each new id: (size,).
    """
    document = json.loads(tokenizer_json)
    pieces: list[tuple[str, float]] = document["model"]["vocab"]
    special = {token["id"] for token in document["added_tokens"]} | {document["model"]["unk_id"]}
    needed = special | {i for i, (piece, _) in enumerate(pieces) if len(piece.lstrip("▁")) <= 1 and counts[i] > 0}
    by_count = [int(i) for i in np.argsort(-counts, kind="stable") if int(i) not in needed]
    kept = np.array(sorted([*needed, *by_count[: size - len(needed)]]), np.int64)
    new_id = {int(old): new for new, old in enumerate(kept)}
    document["model"]["vocab"] = [pieces[i] for i in kept]
    document["model"]["unk_id"] = new_id[document["model"]["unk_id"]]
    for token in document["added_tokens"]:
        token["id"] = new_id[token["id"]]
    for token in document["post_processor"]["special_tokens"].values():
        token["ids"] = [new_id[i] for i in token["ids"]]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")), kept
