"""The torch LLM of a large model with one layer in memory at a time, for the comparison of an export.

8 billion weights are 32 GB in float32. transformers' own decoder stands on the meta device, where tensors have no data;
a layer gets its weights when it is called, and loses them when it is done.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from mtllm_edge.errors import ModelError
from mtllm_edge_export.adapters.merge import check_lora, merge_lora
from mtllm_edge_export.llms.body import LlmBody
from mtllm_edge_export.llms.config import LlmShape
from mtllm_edge_train.models import stack as in_torch

FROM_BYTES = 4_000_000_000
"""Bytes of float32 weights from which on layers are streamed: it takes longer, as every batch reads them all."""


def is_large(body: LlmBody) -> bool:
    """Whether an LLM is better read layer by layer."""
    shape = LlmShape.read(body.weights.config, body.layers)
    return 4 * sum(math.prod(dimensions) for _, _, dimensions in shape.tensors()) >= FROM_BYTES


def load_streamed_llm(body: LlmBody) -> in_torch.LlmBody:
    """The LLM in float32 on the CPU, adapter merged, in eval mode.

    Raises:
        ModelError: A tensor is missing or has another shape, or the adapter does not fit.
    """
    shape = LlmShape.read(body.weights.config, body.layers)
    check_lora(body.lora, {name: dimensions for _, name, dimensions in shape.tensors() if len(dimensions) == 2})
    settings = {"model_type": "llama", **body.weights.config, "num_hidden_layers": shape.n_layer}
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model: Any = transformers.AutoModel.from_config(config, dtype=torch.float32)
    if getattr(config, "attn_logit_softcapping", None):  # Gemma 2's, which torch's own attention lacks
        model.set_attn_implementation("eager")
    model.rotary_emb = type(model.rotary_emb)(config=config)
    model.embed_tokens = nn.Embedding(1, shape.n_embd)  # the stack reads no tokens of the LLM's
    _fill(model.norm, "norm.", body)
    for number, layer in enumerate(model.layers):
        _stream(layer, f"layers.{number}.", body)
    return in_torch.LlmBody(model, bidirectional=body.attention == "bidirectional", lora=None).eval()


def _stream(layer: nn.Module, prefix: str, body: LlmBody) -> None:
    empty = dict(layer.named_parameters())

    def drop(*_: object) -> None:
        for name, parameter in empty.items():
            _set(layer, name, parameter)

    layer.register_forward_pre_hook(lambda *_: _fill(layer, prefix, body))
    layer.register_forward_hook(drop, always_call=True)


def _fill(module: nn.Module, prefix: str, body: LlmBody) -> None:
    for name, parameter in list(module.named_parameters()):
        found = body.weights.tensor(prefix + name)
        if found.shape != tuple(parameter.shape):
            raise ModelError(
                f"the LLM's {prefix}{name} has shape {found.shape}, its configuration says {tuple(parameter.shape)}"
            )
        merged = merge_lora(found, body.lora, (prefix + name).removesuffix(".weight"), body.lora_scale)
        _set(module, name, nn.Parameter(torch.from_numpy(np.array(merged, np.float32)), requires_grad=False))


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, own = name.rpartition(".")
    setattr(module.get_submodule(owner), own, parameter)
