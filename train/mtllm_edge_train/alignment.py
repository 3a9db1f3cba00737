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

from mtllm_edge.errors import UsageError
from mtllm_edge_train.model import Stack, encode_english, pad_right

_BATCH = 64


def align_bridge(stack: Stack, texts: Sequence[str], llm_tokenizer: Any, *, ridge: float = 1.0) -> None:
    """Set the bridge's weight and bias by ridge regression, in place.

    Args:
        stack: The stack; encoder, tokenizer and the LLM's embedding table are read.
        texts: English texts; a few thousand are enough.
        llm_tokenizer: The LLM's own fast tokenizer.
        ridge: Added to the diagonal of the normal equations, whose entries grow with the number of tokens.

    Raises:
        UsageError: No text has tokens in both tokenizers.
    """
    table_VD = stack.llm.model.get_input_embeddings().weight.detach().float()
    d_encoder = stack.bridge.in_features
    n, x_sum, y_sum = 0, torch.zeros(d_encoder).double(), torch.zeros(table_VD.shape[1]).double()
    xx, xy = torch.zeros(d_encoder, d_encoder).double(), torch.zeros(d_encoder, table_VD.shape[1]).double()
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        encoded = encode_english(stack.tokenizer, batch)
        ids_NL, mask_NL = pad_right(encoded, device=str(table_VD.device))
        hidden_NLD = stack.encode(ids_NL, mask_NL)
        for row, text in enumerate(batch):
            places, targets_KD = _targets(stack.tokenizer.offsets(text), text, llm_tokenizer, table_VD)
            states_KD = hidden_NLD[row, places].cpu().double()
            n += len(places)
            x_sum, y_sum = x_sum + states_KD.sum(0), y_sum + targets_KD.sum(0)
            xx, xy = xx + states_KD.T @ states_KD, xy + states_KD.T @ targets_KD
    if n == 0:
        raise UsageError("the two tokenizers share no text: give texts that both can read")
    x_mean, y_mean = x_sum / n, y_sum / n
    normal = xx - n * torch.outer(x_mean, x_mean) + ridge * torch.eye(d_encoder).double()
    weight = torch.linalg.solve(normal, xy - n * torch.outer(x_mean, y_mean)).T
    stack.bridge.weight.data.copy_(weight)
    stack.bridge.bias.data.copy_(y_mean - weight @ x_mean)


def _targets(
    places: Sequence[tuple[int, int, int]], text: str, llm_tokenizer: Any, table_VD: Tensor
) -> tuple[list[int], Tensor]:
    """For each encoder token: its place in the sequence, and the mean embedding of the LLM tokens that overlap it."""
    reading = llm_tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    if not places or not reading["input_ids"]:
        return [], torch.zeros(0, table_VD.shape[1]).double()
    embeddings_TD = table_VD[torch.tensor(reading["input_ids"])].cpu().double()
    tokens_T2 = torch.tensor(reading["offset_mapping"])
    pieces_P3 = torch.tensor(places)
    starts_before_end = tokens_T2[None, :, 0] < pieces_P3[:, 2:]
    ends_after_start = tokens_T2[None, :, 1] > pieces_P3[:, 1:2]
    overlap_PT = (starts_before_end & ends_after_start).to(embeddings_TD.dtype)
    counts_P = overlap_PT.sum(1)
    kept_P = counts_P > 0
    means_KD = (overlap_PT @ embeddings_TD)[kept_P] / counts_P[kept_P, None]
    return [int(place) for place in pieces_P3[kept_P, 0]], means_KD
