"""Dimensions, positions and attention of an LLM body, read from the configuration keys of transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import ModelError
from mtllm_edge_train.checkpoints.llm_families import Family, family_of

Array = NDArray[np.float32]

_WIDE_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Number of layers by which llama.cpp recognizes the 27 B models and scales their queries differently."""


@dataclass(frozen=True)
class LlmShape:
    """Hyperparameters of an LLM body, and the names and shapes of its weights."""

    family: Family
    n_embd: int
    n_layer: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    epsilon: float
    context: int
    """Context length of the training, in tokens."""
    rope_theta: float
    rope_factors: Array | None
    """Divisors of the rotary frequencies, (head_dim / 2); None without frequency scaling."""
    rope_divisor: float = 1.0
    """Divisor of all positions in layers without a window (linear scaling)."""
    window: int | None = None
    """Size of the sliding attention window of a causal body in tokens, the current one included."""
    windowed: tuple[bool, ...] = ()
    """Whether each layer has a window."""
    window_rope_theta: float = 10000.0
    """Rotary base of layers with a window, for families whose windows llama.cpp implements."""
    softcap: float | None = None
    """Bound of the attention logits (soft capping)."""
    query_factor: float = 1.0
    """Factor on the queries that corrects for a different attention scale in llama.cpp."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], layers: int | None) -> LlmShape:
        """Read the configuration keys of transformers for the first `layers` layers; None keeps all.

        Raises:
            ModelError: The LLM has fewer layers, or parts that llama.cpp's graph does not support.
        """
        try:
            return _shape(config, layers)
        except KeyError as error:
            raise ModelError(f"the LLM's configuration lacks {error}; download the model again") from None

    @property
    def unsupported_window(self) -> int | None:
        """A sliding window that llama.cpp does not implement: longer inputs would differ from torch."""
        return self.window if any(self.windowed) and not self.family.windows else None

    @property
    def float32_bytes(self) -> int:
        """Size of all weights in float32, in bytes."""
        return 4 * sum(math.prod(dimensions) for _, _, dimensions in self.tensors())

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yield GGUF's name, transformers' name and shape (out, in) of every weight, in file order."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (q, self.n_embd),
            "self_attn.k_proj.weight": (kv, self.n_embd),
            "self_attn.v_proj.weight": (kv, self.n_embd),
            "self_attn.o_proj.weight": (self.n_embd, q),
            "self_attn.q_proj.bias": (q,),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.bias": (kv,),
            "self_attn.q_norm.weight": (self.head_dim,),
            "self_attn.k_norm.weight": (self.head_dim,),
            "mlp.gate_proj.weight": (self.n_ff, self.n_embd),
            "mlp.up_proj.weight": (self.n_ff, self.n_embd),
            "mlp.down_proj.weight": (self.n_embd, self.n_ff),
        }
        for layer in range(self.n_layer):
            for name, stored in self.family.tensors.items():
                yield f"blk.{layer}.{stored}", f"layers.{layer}.{name}", shapes.get(name, (self.n_embd,))
        yield "output_norm.weight", "norm.weight", (self.n_embd,)


def _shape(config: Mapping[str, Any], layers: int | None) -> LlmShape:
    family = family_of(config)
    available = int(config["num_hidden_layers"])
    n_layer = available if layers is None else layers
    if not 1 <= n_layer <= available:
        raise ModelError(f"the LLM has {available} layers, {n_layer} requested; choose 1 to {available}")
    if unsupported := _unsupported_settings(config, family, n_layer):
        kind = config.get("model_type", "llama")
        raise ModelError(
            f"the LLM's configuration has {unsupported}, which cannot be exported; train on a plain {kind}"
        )
    n_embd, n_head = int(config["hidden_size"]), int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or n_embd // n_head)
    if family.architecture == "qwen2" and head_dim * n_head != n_embd:
        raise ModelError(
            f"the LLM has {n_head} heads of {head_dim}, which is not its width {n_embd}, as llama.cpp requires"
        )
    # `rope_parameters` since transformers 5, other keys in older files
    positions = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta, factors, divisor = _rope(positions.get("full_attention", positions), config, family, head_dim)
    windowed = _windowed(config, family, n_layer)
    return LlmShape(
        family=family,
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
        rope_divisor=divisor,
        window=int(config["sliding_window"]) if any(windowed) else None,
        windowed=windowed,
        window_rope_theta=_window_rope_theta(positions, config, theta) if family.windows else theta,
        softcap=float(config["attn_logit_softcapping"]) if family.architecture == "gemma2" else None,
        query_factor=_query_factor(config, family, n_layer, n_embd // n_head, head_dim),
    )


def _unsupported_settings(config: Mapping[str, Any], family: Family, n_layer: int) -> dict[str, Any]:
    """Return the settings that llama.cpp's graph of the family does not support."""
    unsupported = {key: config[key] for key in ("attention_bias", "mlp_bias") if config.get(key)}
    key = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    allowed = ("silu", "swish") if family.activation == "silu" else (family.activation,)
    if config.get(key, family.activation) not in allowed:
        unsupported[key] = config[key]
    if family.architecture == "gemma3" and config.get("attn_logit_softcapping"):
        unsupported["attn_logit_softcapping"] = config["attn_logit_softcapping"]
    if family.architecture == "gemma2" and not config.get("attn_logit_softcapping", 50.0):
        unsupported["attn_logit_softcapping"] = config["attn_logit_softcapping"]
    if family.windows and not config["sliding_window"]:
        unsupported["sliding_window"] = config["sliding_window"]
    if config.get("use_bidirectional_attention"):
        unsupported["use_bidirectional_attention"] = True
    if family.architecture == "smollm3":
        rotated = config.get("no_rope_layers") or []
        if any(bool(flag) != ((layer + 1) % 4 != 0) for layer, flag in enumerate(rotated[:n_layer])):
            unsupported["no_rope_layers"] = rotated
        if config.get("no_rope_layer_interval", 4) != 4:
            unsupported["no_rope_layer_interval"] = config["no_rope_layer_interval"]
    return unsupported


def _windowed(config: Mapping[str, Any], family: Family, n_layer: int) -> tuple[bool, ...]:
    """Return for each layer of a causal body whether it has a sliding window, as transformers decides it."""
    default = family.windows or config.get("model_type") == "mistral"
    if not config.get("sliding_window") or not config.get("use_sliding_window", default):
        return (False,) * n_layer
    if config.get("layer_types"):
        return tuple(kind == "sliding_attention" for kind in config["layer_types"][:n_layer])
    if family.windows:
        period = int(config.get("sliding_window_pattern") or family.window_period)
        return tuple((layer + 1) % period != 0 for layer in range(n_layer))
    if family.architecture == "smollm3":
        return tuple((layer + 1) % 4 == 0 for layer in range(n_layer))
    first = 0 if config.get("model_type") == "mistral" else int(config.get("max_window_layers", 28))
    return tuple(layer >= first for layer in range(n_layer))


def _window_rope_theta(positions: Mapping[str, Any], config: Mapping[str, Any], theta: float) -> float:
    """Return the rotary base of layers with a window; llama.cpp does not scale their positions."""
    local = positions.get("sliding_attention", {})
    if local.get("rope_type", "default") != "default":
        raise ModelError(
            f"the LLM scales positions in layers with a sliding window by {local['rope_type']!r}; "
            "llama.cpp does not support that"
        )
    if config.get("model_type") == "gemma2":
        return theta
    return float(local.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0)


def _query_factor(config: Mapping[str, Any], family: Family, n_layer: int, shared_width: int, head_dim: int) -> float:
    """Return the model's attention scale divided by that of llama.cpp."""
    scalar = config.get("query_pre_attn_scalar")
    if scalar is None:
        return 1.0
    assumed = shared_width if n_layer == _WIDE_GEMMA.get(family.architecture) else head_dim
    return math.sqrt(assumed / float(scalar))


def _rope(
    parameters: Mapping[str, Any], config: Mapping[str, Any], family: Family, head_dim: int
) -> tuple[float, Array | None, float]:
    """Return the rotary base, the frequency divisors and the divisor of all positions."""
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or family.rope_theta)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return theta, None, 1.0
    if kind == "linear":
        return theta, None, float(parameters["factor"])
    if kind == "llama3" and family.architecture == "llama":
        return theta, llama3_rope_factors(parameters, theta, head_dim), 1.0
    raise ModelError(f"the LLM uses RoPE scaling {kind!r}; supported are 'default', 'linear' and, for Llama, 'llama3'")


def llama3_rope_factors(parameters: Mapping[str, Any], theta: float, head_dim: int) -> Array:
    """Return the divisors of the rotary frequencies of Llama 3.1 and later, (head_dim / 2).

    Wavelengths above the original context are multiplied by `factor`, short ones are unchanged, and those in between
    are interpolated in the frequency (transformers, `_compute_llama3_parameters`).
    """
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    waves_in_context = float(parameters["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    unscaled = np.clip((waves_in_context - low) / (high - low), 0.0, 1.0)
    return (1.0 / (unscaled + (1.0 - unscaled) / factor)).astype(np.float32)
