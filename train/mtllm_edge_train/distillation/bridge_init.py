"""Start the bridge where the LLM already understands it.

The paper starts the bridge from noise and has millions of texts to recover. With thousands, it pays to start from the
ridge regression that maps the encoder's state of a token, or its states of a group of tokens, to the LLM's input
embeddings of the same characters: both tokenizers report character offsets, so the pairs come from plain English text
without any training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtllm_edge.errors import UsageError
from mtllm_edge_train.models.bridge import group_states
from mtllm_edge_train.models.stack import Stack, encode_english, pad_right

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
    embeddings = stack.llm.model.get_input_embeddings()
    table_VD = embeddings.weight.detach().float() * getattr(embeddings, "embed_scale", 1.0)  # Gemma scales its tokens
    d_llm, d_group = stack.bridge.weight.shape
    n, x_sum, y_sum = 0, torch.zeros(d_group).double(), torch.zeros(d_llm).double()
    xx, xy = torch.zeros(d_group, d_group).double(), torch.zeros(d_group, d_llm).double()
    for start in range(0, len(texts), _BATCH):
        states_MK, targets_MD = _pairs(stack, texts[start : start + _BATCH], llm_tokenizer, table_VD)
        n += len(states_MK)
        x_sum += states_MK.sum(0)
        y_sum += targets_MD.sum(0)
        xx.addmm_(states_MK.T, states_MK)
        xy.addmm_(states_MK.T, targets_MD)
    if n == 0:
        raise UsageError("the two tokenizers share no text: give texts that both can read")
    x_mean, y_mean = x_sum / n, y_sum / n
    normal = xx - n * torch.outer(x_mean, x_mean) + ridge * torch.eye(d_group).double()
    weight = torch.linalg.solve(normal, xy - n * torch.outer(x_mean, y_mean)).T
    stack.bridge.weight.data.copy_(weight)
    stack.bridge.bias.data.copy_(y_mean - weight @ x_mean)


def _pairs(stack: Stack, texts: Sequence[str], llm_tokenizer: Any, table_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of encoder states (M, stride * d_encoder) of a batch, and what the LLM reads in their place (M, d_llm)."""
    ids_NL, mask_NL = pad_right(encode_english(stack.tokenizer, texts), device=str(table_VD.device))
    grouped_NGK, _ = group_states(stack.encode(ids_NL, mask_NL), mask_NL, stack.bridge.stride)
    states, targets = [], []
    for row, text in enumerate(texts):
        groups, targets_KD = _targets(
            stack.tokenizer.offsets(text), text, llm_tokenizer, table_VD, stride=stack.bridge.stride
        )
        states.append(grouped_NGK[row, groups.to(grouped_NGK.device)].cpu().double())
        targets.append(targets_KD)
    return torch.cat(states), torch.cat(targets)


def _targets(
    places: Sequence[tuple[int, int, int]], text: str, llm_tokenizer: Any, table_VD: Tensor, *, stride: int
) -> tuple[Tensor, Tensor]:
    """Places of the groups of encoder tokens, and for each the mean embedding of the LLM tokens that overlap it."""
    reading = llm_tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    if not places or not reading["input_ids"]:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, table_VD.shape[1]).double()
    embeddings_TD = table_VD[torch.tensor(reading["input_ids"])].cpu().double()
    tokens_T2 = torch.tensor(reading["offset_mapping"])
    pieces_P3 = torch.tensor(places)
    starts_before_end = tokens_T2[None, :, 0] < pieces_P3[:, 2:]
    ends_after_start = tokens_T2[None, :, 1] > pieces_P3[:, 1:2]
    overlap_PT = (starts_before_end & ends_after_start).to(embeddings_TD.dtype)
    group_P = pieces_P3[:, 0] // stride
    overlap_GT = overlap_PT.new_zeros(int(group_P.max()) + 1, overlap_PT.shape[1]).index_add_(0, group_P, overlap_PT)
    overlap_GT.clamp_(max=1)  # an LLM token counts once, however many of the group's pieces it overlaps
    counts_G = overlap_GT.sum(1)
    kept_K = counts_G.nonzero()[:, 0]
    return kept_K, (overlap_GT @ embeddings_TD)[kept_K] / counts_G[kept_K, None]
