from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mtllm_edge.backends.bridge import Bridge
from mtllm_edge.bundle.manifest import TaskSpec
from mtllm_edge.errors import ModelError
from mtllm_edge.tasks.head import Head, softmax
from tests.fixtures.tolerances import FLOAT32, assert_probabilities_close, assert_vectors_close

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RNG.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_the_bridge_projects_each_text_separately(stride: int) -> None:
    bridge = Bridge(normal(6, stride * 4), normal(6), stride)
    hidden = [normal(length, 4) for length in (3, 1, 5, 4, 8, 2)]
    for inputs_GE, hidden_LD in zip(bridge(hidden), hidden, strict=True):
        groups = [hidden_LD[first : first + stride].ravel() for first in range(0, len(hidden_LD), stride)]
        # zero padding adds nothing, so an incomplete group needs only the weights of its states
        expected = [bridge.weight_EK[:, : len(group_K)] @ group_K + bridge.bias_E for group_K in groups]
        assert_vectors_close(inputs_GE, expected, FLOAT32)
        assert inputs_GE.dtype == np.float32
    assert bridge([]) == []


def test_head_divides_by_the_temperature(tmp_path: Path) -> None:
    weight_CE, bias_C = normal(3, 4), normal(3)
    safetensors.numpy.save_file({"weight": weight_CE, "bias": bias_C}, tmp_path / "head.safetensors")
    task = TaskSpec(kind="sequence", labels=("a", "b", "c"), head="head.safetensors", temperature=2.5)
    pooled_NE = normal(5, 4)
    logits_NC = (pooled_NE @ weight_CE.T + bias_C) / 2.5
    expected_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    probabilities_NC = Head.load(tmp_path, task).probabilities(pooled_NE)
    assert_probabilities_close(probabilities_NC, expected_NC, FLOAT32)


def test_head_without_bias(tmp_path: Path) -> None:
    weight_CE = normal(2, 4)
    safetensors.numpy.save_file({"weight": weight_CE}, tmp_path / "head.safetensors")
    head = Head.load(tmp_path, TaskSpec(kind="sequence", labels=("a", "b"), head="head.safetensors"))
    assert head.bias_C is None
    np.testing.assert_allclose(head.probabilities(np.zeros((1, 4), np.float32)), [[0.5, 0.5]])


def test_softmax_of_large_logits() -> None:
    probabilities_NC = softmax(np.array([[1e4, 1e4 - 1, -1e4], [-1e5, -1e5, -1e5]]))
    np.testing.assert_allclose(probabilities_NC.sum(axis=1), 1)
    np.testing.assert_allclose(probabilities_NC[1], 1 / 3)
    np.testing.assert_allclose(probabilities_NC[0, 0] / probabilities_NC[0, 1], np.e)


def test_non_finite_arrays(tmp_path: Path) -> None:
    path = tmp_path / "bridge.safetensors"
    safetensors.numpy.save_file({"weight": np.full((2, 2), np.nan, np.float32), "bias": normal(2)}, path)
    with pytest.raises(ModelError, match=r"bridge\.safetensors: weight holds numbers that are not finite"):
        Bridge.load(path, stride=1)


def test_unreadable_arrays(tmp_path: Path) -> None:
    path = tmp_path / "bridge.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(ModelError, match=r"bridge\.safetensors cannot be read"):
        Bridge.load(path, stride=1)
