"""Adapters that fit are merged, the others refused."""

from __future__ import annotations

import numpy as np
import pytest

from mtllm_edge.errors import ModelError
from mtllm_edge_export.adapters.merge import check_lora, merge_lora

MATRICES = {"layers.0.mlp.up_proj.weight": (6, 4)}
PAIR = {
    "layers.0.mlp.up_proj.lora_A": np.arange(8, dtype=np.float32).reshape(2, 4),
    "layers.0.mlp.up_proj.lora_B": np.arange(12, dtype=np.float32).reshape(6, 2),
}


def test_merges_in_float32() -> None:
    check_lora(PAIR, MATRICES)
    weight = np.ones((6, 4), np.float32)
    merged = merge_lora(weight, PAIR, "layers.0.mlp.up_proj", 0.5)
    down, up = PAIR.values()
    assert merged.dtype == np.float32
    np.testing.assert_array_equal(merged, 1 + 0.5 * (up @ down))


def test_a_module_without_adapter_keeps_its_weight() -> None:
    weight = np.ones((6, 4), np.float32)
    assert merge_lora(weight, PAIR, "layers.0.mlp.gate_proj", 0.5) is weight


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layers.9.mlp.up_proj.lora_A": np.zeros((2, 4))}, "matches no layer"),
        ({"layers.0.mlp.up_proj.lora_C": np.zeros((2, 4))}, "matches no layer"),
        ({"layers.0.mlp.up_proj.lora_A": np.zeros((2, 4))}, "but not the other matrix"),
        ({**PAIR, "layers.0.mlp.up_proj.lora_A": np.zeros((2, 5))}, r"shape \(2, 5\), this LLM requires \(2, 4\)"),
        ({**PAIR, "layers.0.mlp.up_proj.lora_B": np.zeros((6, 3))}, r"this LLM requires \("),
    ],
)
def test_refuses_what_does_not_fit(tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_lora(tensors, MATRICES)
