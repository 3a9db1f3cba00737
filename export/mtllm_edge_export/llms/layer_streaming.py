"""The torch LLM of a large model with one layer in memory at a time, for the comparison of an export.

8 billion weights are 32 GB in float32. transformers' own decoder stays on the meta device, where tensors have no data;
hooks load the weights of a layer before its forward pass and drop them afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from mtllm_edge_export.llms.body import LlmBody
from mtllm_edge_train.models import stack as torch_models

MIN_BYTES = 4_000_000_000
"""Bytes of float32 weights above which layers are streamed; streaming is slower, as every batch reads all weights."""


def is_large(body: LlmBody) -> bool:
    """Return whether an LLM should be streamed."""
    return body.shape.float32_bytes >= MIN_BYTES


def load_streamed_llm(body: LlmBody) -> torch_models.LlmBody:
    """Load the LLM in float32 on the CPU, adapter merged, in eval mode.

    Raises:
        ModelError: A tensor is missing or has another shape, or the adapter does not fit.
    """
    body.check_adapter()
    settings = {"model_type": "llama", **body.weights.config, "num_hidden_layers": body.shape.n_layer}
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model: Any = transformers.AutoModel.from_config(config, dtype=torch.float32)
    if getattr(config, "attn_logit_softcapping", None):  # Gemma 2; torch's fused attention lacks it
        model.set_attn_implementation("eager")
    model.rotary_emb = type(model.rotary_emb)(config=config)
    model.embed_tokens = nn.Embedding(1, body.shape.n_embd)  # the stack passes embeddings, not token ids
    _load_weights(model.norm, "norm.", body)
    for number, layer in enumerate(model.layers):
        _add_hooks(layer, f"layers.{number}.", body)
    return torch_models.LlmBody(model, bidirectional=body.attention == "bidirectional", lora=None).eval()


def _add_hooks(layer: nn.Module, prefix: str, body: LlmBody) -> None:
    meta_parameters = dict(layer.named_parameters())

    def drop_weights(*_: object) -> None:
        for name, parameter in meta_parameters.items():
            _set_parameter(layer, name, parameter)

    layer.register_forward_pre_hook(lambda *_: _load_weights(layer, prefix, body))
    layer.register_forward_hook(drop_weights, always_call=True)


def _load_weights(module: nn.Module, prefix: str, body: LlmBody) -> None:
    for name, parameter in list(module.named_parameters()):
        weight = torch.from_numpy(np.array(body.merged_tensor(prefix + name, tuple(parameter.shape)), np.float32))
        _set_parameter(module, name, nn.Parameter(weight, requires_grad=False))


def _set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, parameter)
