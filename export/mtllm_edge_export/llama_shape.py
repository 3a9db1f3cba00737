"""Dimensions and rotary positions of a Llama body, read from the configuration keys of transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import ModelError
from mtllm_edge_train.llm_weights import GGUF_NAMES

Array = NDArray[np.float32]


@dataclass(frozen=True)
class LlamaShape:
    """What a GGUF file says of a Llama body, and which weights it holds."""

    n_embd: int
    n_layer: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    epsilon: float
    context: int
    """Longest input in tokens that the LLM was trained on."""
    rope_theta: float
    rope_factors: Array | None
    """Divisors of the rotary frequencies, (head_dim / 2), for models with scaled positions."""

    @classmethod
    def read(cls, config: Mapping[str, Any], layers: int | None) -> LlamaShape:
        """Read a configuration.

        Args:
            config: Keys of transformers' `LlamaConfig`.
            layers: How many of the first layers are kept; None keeps all.

        Raises:
            ModelError: Fewer layers than asked for, or parts that llama.cpp's `llama` graph has no place for.
        """
        available = int(config["num_hidden_layers"])
        n_layer = available if layers is None else layers
        if not 1 <= n_layer <= available:
            raise ModelError(f"the LLM has {available} layers, {n_layer} were asked for; choose 1 to {available}")
        odd = {key: config[key] for key in ("attention_bias", "mlp_bias") if config.get(key)}
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            odd["hidden_act"] = config["hidden_act"]
        if odd:
            raise ModelError(f"the LLM's configuration has {odd}, which cannot be exported; train on a plain Llama")
        n_embd, n_head = int(config["hidden_size"]), int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or n_embd // n_head)
        theta, factors = _rope(config, head_dim)
        return cls(
            n_embd=n_embd,
            n_layer=n_layer,
            n_ff=int(config["intermediate_size"]),
            n_head=n_head,
            n_head_kv=int(config.get("num_key_value_heads") or n_head),
            head_dim=head_dim,
            epsilon=float(config["rms_norm_eps"]),
            context=int(config["max_position_embeddings"]),
            rope_theta=theta,
            rope_factors=factors,
        )

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """GGUF's name, transformers' name and shape (out, in) of every weight of the body, in file order."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        layer_shapes = {
            "self_attn.q_proj.weight": (q, self.n_embd),
            "self_attn.k_proj.weight": (kv, self.n_embd),
            "self_attn.v_proj.weight": (kv, self.n_embd),
            "self_attn.o_proj.weight": (self.n_embd, q),
            "mlp.gate_proj.weight": (self.n_ff, self.n_embd),
            "mlp.up_proj.weight": (self.n_ff, self.n_embd),
            "mlp.down_proj.weight": (self.n_embd, self.n_ff),
            "input_layernorm.weight": (self.n_embd,),
            "post_attention_layernorm.weight": (self.n_embd,),
        }
        for layer in range(self.n_layer):
            for name, shape in layer_shapes.items():
                yield f"blk.{layer}.{GGUF_NAMES[name]}", f"layers.{layer}.{name}", shape
        yield "output_norm.weight", "norm.weight", (self.n_embd,)


def _rope(config: Mapping[str, Any], head_dim: int) -> tuple[float, Array | None]:
    """Rotary base and frequency divisors; transformers 5 keeps both in `rope_parameters`, older files in two keys."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "llama3":
        return theta, llama3_rope_factors(parameters, theta, head_dim)
    raise ModelError(f"the LLM scales its positions by {kind!r}; this release exports 'default' and 'llama3'")


def llama3_rope_factors(parameters: Mapping[str, Any], theta: float, head_dim: int) -> Array:
    """Divisors of the rotary frequencies of Llama 3.1 and later, (head_dim / 2).

    Waves longer than the original context are stretched by `factor`, short ones are kept, and those between are blended
    in the frequency (transformers, `_compute_llama3_parameters`).
    """
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    waves_in_context = float(parameters["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    kept = np.clip((waves_in_context - low) / (high - low), 0.0, 1.0)
    return (1.0 / (kept + (1.0 - kept) / factor)).astype(np.float32)
