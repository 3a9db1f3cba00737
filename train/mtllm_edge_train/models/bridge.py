"""The bridge from encoder states to LLM inputs.

The paper's bridge makes one LLM input of every encoder state. A strided one makes one of several neighbouring states,
so that the LLM, by far the larger part, reads that many times fewer inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bridge(nn.Module):
    """Groups of encoder states, projected to the LLM's width."""

    def __init__(self, d_encoder: int, d_llm: int, *, stride: int) -> None:
        """Start with a weight (d_llm, stride * d_encoder) of noise, sigma 0.02, and a bias (d_llm) of zero."""
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(d_llm, stride * d_encoder).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(d_llm))

    def forward(self, hidden_NLD: Tensor, mask_NL: Tensor) -> tuple[Tensor, Tensor]:
        """LLM inputs (N, G, d_llm) and their mask (N, G) of encoder states; shapes as for `group_states`."""
        grouped_NGK, mask_NG = group_states(hidden_NLD, mask_NL, self.stride)
        return functional.linear(grouped_NGK.to(self.weight.dtype), self.weight, self.bias), mask_NG


def group_states(hidden_NLD: Tensor, mask_NL: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Concatenate neighbouring states, from the first token on.

    Zeros stand in for padding and fill a last group, so that a text's groups do not depend on its batch.

    Args:
        hidden_NLD: States, padded on the right.
        mask_NL: 1 where there is a token, 0 in the padding.
        stride: States in a group.

    Returns:
        Groups (N, G, stride * D), G being L / stride rounded up, and their mask (N, G): 1 where a group has a token.
    """
    rows, length, width = hidden_NLD.shape
    missing = -length % stride
    hidden_NLD = hidden_NLD.masked_fill(mask_NL[..., None] == 0, 0.0)
    grouped_NGK = functional.pad(hidden_NLD, (0, 0, 0, missing)).reshape(rows, -1, stride * width)
    mask_NG = functional.pad(mask_NL, (0, missing)).reshape(rows, -1, stride).amax(-1)
    return grouped_NGK, mask_NG
