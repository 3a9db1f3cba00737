"""Initialization of the bridge by ridge regression.

The paper initializes the bridge at random and trains on millions of texts. With thousands, it is better to start from
the ridge regression from the encoder's states of a token, or a group of tokens, to the LLM's input embeddings of the
same characters. Both tokenizers report character offsets, so plain English text gives the pairs.
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


def initialize_bridge(stack: Stack, texts: Sequence[str], llm_tokenizer: Any, *, ridge: float = 1.0) -> None:
    """Set weight and bias of a stack's bridge by ridge regression on a few thousand English texts.

    The penalty `ridge` is added to the diagonal of the normal equations, whose entries grow with the number of tokens.

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
        raise UsageError(
            "the tokenizers of encoder and LLM have no characters of the texts in common; give English texts"
        )
    x_mean, y_mean = x_sum / n, y_sum / n
    normal = xx - n * torch.outer(x_mean, x_mean) + ridge * torch.eye(d_group).double()
    weight = torch.linalg.solve(normal, xy - n * torch.outer(x_mean, y_mean)).T
    stack.bridge.weight.data.copy_(weight)
    stack.bridge.bias.data.copy_(y_mean - weight @ x_mean)


def _pairs(stack: Stack, texts: Sequence[str], llm_tokenizer: Any, table_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of encoder states (M, stride * d_encoder) of a batch, and LLM embeddings (M, d_llm) as their targets."""
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
    offsets: Sequence[tuple[int, int, int]], text: str, llm_tokenizer: Any, table_VD: Tensor, *, stride: int
) -> tuple[Tensor, Tensor]:
    """Indices (K,) of groups of encoder tokens, and mean embeddings (K, d_llm) of the LLM tokens that overlap them."""
    tokens = llm_tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    if not offsets or not tokens["input_ids"]:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, table_VD.shape[1]).double()
    embeddings_TD = table_VD[torch.tensor(tokens["input_ids"])].cpu().double()
    tokens_T2 = torch.tensor(tokens["offset_mapping"])
    pieces_P3 = torch.tensor(offsets)
    starts_before_end = tokens_T2[None, :, 0] < pieces_P3[:, 2:]
    ends_after_start = tokens_T2[None, :, 1] > pieces_P3[:, 1:2]
    overlap_PT = (starts_before_end & ends_after_start).to(embeddings_TD.dtype)
    group_P = pieces_P3[:, 0] // stride
    overlap_GT = overlap_PT.new_zeros(int(group_P.max()) + 1, overlap_PT.shape[1]).index_add_(0, group_P, overlap_PT)
    overlap_GT.clamp_(max=1)  # an LLM token counts once per group
    counts_G = overlap_GT.sum(1)
    group_K = counts_G.nonzero()[:, 0]
    return group_K, (overlap_GT @ embeddings_TD)[group_K] / counts_G[group_K, None]
