"""Compare a LoRA in GGUF with its LLM: llama.cpp ends the process over a mismatch, or applies it wrongly."""

from __future__ import annotations

import math
from pathlib import Path

from mtllm_edge.bundle.formats import gguf

ALPHA = "adapter.lora.alpha"
_SUFFIXES = (".lora_a", ".lora_b")


def adapter_problems(path: Path, base: gguf.GgufHeader, architecture: str) -> list[str]:
    """Return the problems of an adapter of an LLM with the header `base`; raises DamagedFileError for other files."""
    header = gguf.read_header(path)
    expected = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": architecture}
    problems = [
        f"{key} is {header.fields.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if header.fields.get(key) != value
    ]
    alpha = header.fields.get(ALPHA, 0.0)
    if header.kinds.get(ALPHA, gguf.FLOAT32) != gguf.FLOAT32 or not (isinstance(alpha, float) and math.isfinite(alpha)):
        problems.append(f"{ALPHA} is {alpha!r}, expected a number in float32")
    problems += [f"{key} is for text generation only" for key in header.fields if key.startswith("adapter.alora.")]
    if not header.shapes:
        problems.append("holds no tensors")
    for name in header.shapes:
        problems += _pair_problems(name, header, base)
    return problems if len(problems) <= 4 else [*problems[:3], f"and {len(problems) - 3} more problems"]


def _pair_problems(name: str, header: gguf.GgufHeader, base: gguf.GgufHeader) -> list[str]:
    """Return the problems of a tensor; those of a pair are reported with its first half."""
    module = name[: -len(_SUFFIXES[0])]
    weight = base.shapes.get(module, ())
    if not name.endswith(_SUFFIXES) or len(weight) != 2 or not module.startswith("blk."):
        return [f"tensor {name} belongs to no matrix of the LLM"]
    if header.types[name] not in (gguf.F32, gguf.F16):
        return [f"tensor {name} has type {header.types[name]}, expected float32 or float16"]
    down, up = (header.shapes.get(f"{module}{suffix}", ()) for suffix in _SUFFIXES)
    if len(down) != 2 or len(up) != 2:
        return [f"tensor {name} lacks its other half, or does not have two dimensions"]
    if name.endswith(_SUFFIXES[0]) and (down[0], down[1], up[1]) != (weight[0], up[0], weight[1]):
        return [f"{module} has halves {list(down)} and {list(up)}, expected [{weight[0]}, r] and [r, {weight[1]}]"]
    return []
