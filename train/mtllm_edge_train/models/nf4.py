"""The frozen LLM in 4-bit NF4 (Dettmers et al. 2023, arXiv 2305.14314), as in the paper.

bitsandbytes quantizes the weights when they move to a GPU, so this works for every source of an LLM. Not tested on a
GPU: the tests replace bitsandbytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mtllm_edge.errors import UsageError
from mtllm_edge.extras import missing_modules


def check_nf4(device: str) -> None:
    """Check the requirements of NF4, before a model is loaded.

    Raises:
        UsageError: The device is not CUDA, or bitsandbytes is not installed.
    """
    if torch.device(device).type != "cuda":
        raise UsageError(f"a base in nf4 needs --device cuda, this run is on {device}; choose bfloat16 or float32")
    if missing_modules("bitsandbytes"):
        raise UsageError(
            "a base in nf4, the default on CUDA, needs the extra [cuda] (bitsandbytes not installed); "
            "run: pip install 'mtllm-edge[cuda]', or pass --base-dtype bfloat16"
        )


def pack_nf4(model: Any) -> None:
    """Replace the linear layers of a decoder by 4-bit layers, which are quantized when the model moves to CUDA."""
    import bitsandbytes

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                packed = bitsandbytes.nn.Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=layer.bias is not None,
                    compute_dtype=layer.weight.dtype,
                    quant_type="nf4",
                    device="meta",
                )
                packed.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                packed.bias = layer.bias
                setattr(parent, name, packed)
    model.is_loaded_in_4bit = True  # peft reads this when it adds adapters
