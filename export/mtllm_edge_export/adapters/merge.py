"""Check LoRA adapters against an LLM, and merge them into its weights in float32, before quantization."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import ModelError

Array = NDArray[np.float32]


def check_lora(lora: Mapping[str, Array], matrices: Mapping[str, tuple[int, ...]]) -> None:
    """Check that an adapter fits an LLM.

    Args:
        lora: ``<module>.lora_A`` (rank, in) and ``<module>.lora_B`` (out, rank).
        matrices: ``<module>.weight`` -> (out, in) of every matrix that can have an adapter.

    Raises:
        ModelError: Unknown module, one matrix of a pair missing, or wrong shape.
    """
    for name, tensor in lora.items():
        module, _, half = name.rpartition(".lora_")
        dimensions = matrices.get(f"{module}.weight")
        if dimensions is None or half not in ("A", "B"):
            raise ModelError(f"the adapter's tensor {name} matches no layer of this LLM; use the LLM it was trained on")
        other = lora.get(f"{module}.lora_{'B' if half == 'A' else 'A'}")
        if other is None:
            raise ModelError(f"the adapter has {name} but not the other matrix of the pair; train or download it again")
        rank = other.shape[1] if half == "A" else other.shape[0]
        expected = (rank, dimensions[1]) if half == "A" else (dimensions[0], rank)
        if tensor.shape != expected:
            raise ModelError(f"the adapter's {name} has shape {tensor.shape}, this LLM requires {expected}")


def merge_lora(weight_OI: Array, lora: Mapping[str, Array], module: str, scale: float) -> Array:
    """Return a module's weight plus its adapter, if any: ``W + scale * (B @ A)``."""
    down_RI, up_OR = lora.get(f"{module}.lora_A"), lora.get(f"{module}.lora_B")
    if down_RI is None or up_OR is None:
        return weight_OI
    merged_OI: Array = weight_OI + np.float32(scale) * (up_OR @ down_RI)
    return merged_OI
