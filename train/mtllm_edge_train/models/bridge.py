"""The bridge from encoder states to LLM inputs.

The bridge of the paper maps every encoder state to one LLM input. A strided bridge maps several neighboring states to
one, which shortens the input of the LLM, by far the larger part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bridge(nn.Module):
    """A linear projection of groups of encoder states to the width of the LLM."""

    def __init__(self, d_encoder: int, d_llm: int, *, stride: int) -> None:
        """Initialize the weight (d_llm, stride * d_encoder) with sigma 0.02, and the bias (d_llm) with zeros."""
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(d_llm, stride * d_encoder).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(d_llm))

    def forward(self, hidden_NLD: Tensor, mask_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Map encoder states to LLM inputs (N, G, d_llm) and their mask (N, G); shapes as in `group_states`."""
        grouped_NGK, mask_NG = group_states(hidden_NLD, mask_NL, self.stride)
        return functional.linear(grouped_NGK.to(self.weight.dtype), self.weight, self.bias), mask_NG


def group_states(hidden_NLD: Tensor, mask_NL: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Concatenate `stride` neighboring states, from the first token on.

    Padding, on the right, is set to zero and fills the last group, so that the groups of a text do not depend on its
    batch.

    Returns:
        Groups (N, G, stride * D), with G = ceil(L / stride), and their mask (N, G): 1 if a group has a token.
    """
    rows, length, width = hidden_NLD.shape
    missing = -length % stride
    hidden_NLD = hidden_NLD.masked_fill(mask_NL[..., None] == 0, 0.0)
    grouped_NGK = functional.pad(hidden_NLD, (0, 0, 0, missing)).reshape(rows, -1, stride * width)
    mask_NG = functional.pad(mask_NL, (0, missing)).reshape(rows, -1, stride).amax(-1)
    return grouped_NGK, mask_NG
