"""The two networks of the tiny bundle in plain numpy, written from their papers and not from the code under test."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests import tiny

Array = NDArray[np.float64]


def read_gguf(path: Path) -> dict[str, Array]:
    """All tensors, de-quantised: matrices (out, in)."""
    tensors = gguf.GGUFReader(path).tensors
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64) for tensor in tensors}


def llama_pooled(weights: dict[str, Array], inputs_LE: NDArray[np.float32], *, causal: bool) -> Array:
    """Mean of the final-normed states of a Llama body (Touvron et al. 2023) fed with embeddings."""
    x_LE = inputs_LE.astype(np.float64)
    for layer in range(tiny.N_LAYER):
        w = {name.split(".")[2]: array for name, array in weights.items() if name.startswith(f"blk.{layer}.")}
        x_LE = x_LE + _attention(_rms_norm(x_LE, w["attn_norm"]), w, causal=causal)
        h_LE = _rms_norm(x_LE, w["ffn_norm"])
        gate_LF = h_LE @ w["ffn_gate"].T
        x_LE = x_LE + (gate_LF / (1 + np.exp(-gate_LF)) * (h_LE @ w["ffn_up"].T)) @ w["ffn_down"].T
    return _rms_norm(x_LE, weights["output_norm.weight"]).mean(axis=0)


def _attention(h_LE: Array, w: dict[str, Array], *, causal: bool) -> Array:
    length, d_head = len(h_LE), tiny.N_EMBD // tiny.N_HEAD
    q = _rotate((h_LE @ w["attn_q"].T).reshape(length, tiny.N_HEAD, d_head))
    k = _rotate((h_LE @ w["attn_k"].T).reshape(length, tiny.N_HEAD_KV, d_head))
    v = (h_LE @ w["attn_v"].T).reshape(length, tiny.N_HEAD_KV, d_head)
    share = tiny.N_HEAD // tiny.N_HEAD_KV
    heads = []
    for head in range(tiny.N_HEAD):
        scores = q[:, head] @ k[:, head // share].T / math.sqrt(d_head)
        if causal:
            scores = np.where(np.tril(np.ones_like(scores)) == 1, scores, -np.inf)
        heads.append(_softmax(scores) @ v[:, head // share])
    return np.concatenate(heads, axis=1) @ w["attn_output"].T


def _rotate(x_LHD: Array) -> Array:
    """Rotary positions (Su et al. 2021) over neighbouring pairs, as GGUF's `llama` stores them."""
    length, _, d_head = x_LHD.shape
    angles = np.outer(np.arange(length), tiny.ROPE_BASE ** (-np.arange(0, d_head, 2) / d_head))[:, None]
    even, odd = x_LHD[..., 0::2], x_LHD[..., 1::2]
    rotated = np.empty_like(x_LHD)
    rotated[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    rotated[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return rotated


def _rms_norm(x_LE: Array, weight_E: Array) -> Array:
    return x_LE / np.sqrt((x_LE**2).mean(axis=1, keepdims=True) + tiny.RMS_EPS) * weight_E


def bert_states(weights: dict[str, NDArray[np.float32]], ids: list[int]) -> Array:
    """Hidden states (length, d_model) of a post-norm encoder (Devlin et al. 2019) built by `tiny.encoder_weights`."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x_LD = _layer_norm(w["word"][ids] + w["type"][0] + w["position"][: len(ids)], w, "norm")
    d_head = tiny.D_MODEL // tiny.ENCODER_HEADS
    for layer in range(tiny.ENCODER_LAYERS):
        q, k, v = np.split(_linear(x_LD, w, f"{layer}.qkv"), 3, axis=1)
        heads = []
        for head in range(tiny.ENCODER_HEADS):
            part = slice(head * d_head, (head + 1) * d_head)
            heads.append(_softmax(q[:, part] @ k[:, part].T / math.sqrt(d_head)) @ v[:, part])
        attended = _linear(np.concatenate(heads, axis=1), w, f"{layer}.out")
        x_LD = _layer_norm(x_LD + attended, w, f"{layer}.attention_norm")
        up = _linear(x_LD, w, f"{layer}.up")
        gelu = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
        x_LD = _layer_norm(x_LD + _linear(gelu, w, f"{layer}.down"), w, f"{layer}.ff_norm")
    return x_LD


def _linear(x_LD: Array, w: dict[str, Array], name: str) -> Array:
    return x_LD @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _layer_norm(x_LD: Array, w: dict[str, Array], name: str) -> Array:
    centred = x_LD - x_LD.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _softmax(scores: Array) -> Array:
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def cosine(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Cosine of two arrays taken as vectors."""
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))
