"""Makes tiny random LLMs of each family's true architecture. Nothing is downloaded.

Grouped heads everywhere, heads that do not share the width where a family has such, windows far shorter than the texts
of the tests, biases and norms drawn at random, so that none of it can be lost unseen. Run as a script it writes one:
``python tiny_llms.py FAMILY FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

WIDTH, LAYERS = 64, 4
WINDOW = 24
_COMMON: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    "mistral": {"head_dim": 24, "sliding_window": None, "rope_parameters": {"rope_theta": 500.0}},
    "qwen2": {"rope_parameters": {"rope_theta": 500.0}},
    "qwen3": {"head_dim": 24, "rope_parameters": {"rope_theta": 500.0}},
    "smollm3": {"rope_parameters": {"rope_theta": 500.0}},
    "gemma2": {
        "head_dim": 24,
        "query_pre_attn_scalar": 40,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 2.0,
        "rope_parameters": {"rope_theta": 500.0},
    },
    "gemma3_text": {
        "head_dim": 24,
        "query_pre_attn_scalar": 40,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 4000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
}
FAMILIES = tuple(_OWN)


def save_family(folder: Path, family: str, **changes: Any) -> None:
    """Write a model folder; `changes` are keys of its configuration."""
    torch.manual_seed(2)
    config = transformers.AutoConfig.for_model(family, **{**_COMMON, **_OWN[family], **changes})
    model = transformers.AutoModel.from_config(config)
    centre = 0.0 if family.startswith("gemma") else 1.0  # Gemma stores what a norm's weight has above 1
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, centre - 0.5, centre + 0.5)
        elif name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)


if __name__ == "__main__":
    save_family(Path(sys.argv[2]), sys.argv[1])
