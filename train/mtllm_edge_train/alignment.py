"""Start the bridge where the LLM already understands it.

The paper starts the bridge from noise and has millions of texts to recover. With thousands, it pays to start from the
ridge regression that maps the encoder's state of a token to the LLM's input embeddings of the same characters: both
tokenizers report character offsets, so the pairs come from plain English text without any training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtllm_edge_train.model import Stack, pad_right

_BATCH = 64


def align_bridge(stack: Stack, texts: Sequence[str], llm_tokenizer: Any, *, ridge: float = 1.0) -> None:
    """Set the bridge's weight and bias by ridge regression, in place.

    Args:
        stack: The stack; encoder, tokenizer and the LLM's embedding table are read.
        texts: English texts; a few thousand are enough.
        llm_tokenizer: The LLM's own fast tokenizer.
        ridge: Added to the diagonal of the normal equations, whose entries grow with the number of tokens.
    """
    table_VD = stack.llm.model.get_input_embeddings().weight.detach().float()
    states, targets = [], []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        encoded = stack.tokenizer.encode(batch)
        ids_NL, mask_NL = pad_right(encoded, device=str(table_VD.device))
        hidden_NLD = stack.encode(ids_NL, mask_NL).float()
        for row, text in enumerate(batch):
            places, embeddings_KD = _targets(stack.tokenizer.offsets(text), text, llm_tokenizer, table_VD)
            places = [place for place in places if place < len(encoded[row].ids)]
            states.append(hidden_NLD[row, places])
            targets.append(embeddings_KD[: len(places)])
    x, y = torch.cat(states).double(), torch.cat(targets).double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    normal = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(normal, x.T @ y).T
    stack.bridge.weight.data.copy_(weight)
    stack.bridge.bias.data.copy_(y_mean - weight @ x_mean)


def _targets(
    places: Sequence[tuple[int, int, int]], text: str, llm_tokenizer: Any, table_VD: Tensor
) -> tuple[list[int], Tensor]:
    """For each encoder token: its place in the sequence, and the mean embedding of the LLM tokens that overlap it."""
    reading = llm_tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    embeddings_TD = table_VD[torch.tensor(reading["input_ids"])]
    tokens_T2 = torch.tensor(reading["offset_mapping"])
    pieces_P3 = torch.tensor(places)
    starts_before_end = tokens_T2[None, :, 0] < pieces_P3[:, 2:]
    ends_after_start = tokens_T2[None, :, 1] > pieces_P3[:, 1:2]
    overlap_PT = (starts_before_end & ends_after_start).to(embeddings_TD.dtype)
    counts_P = overlap_PT.sum(1)
    kept_P = counts_P > 0
    means_KD = (overlap_PT @ embeddings_TD)[kept_P] / counts_P[kept_P, None]
    return [int(place) for place in pieces_P3[kept_P, 0]], means_KD
