"""A large LLM is read layer by layer for the comparison with torch, and computes the same."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from mtllm_edge.errors import ModelError
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_export.llms import layer_streaming
from mtllm_edge_export.llms.body import LlmBody
from mtllm_edge_export.llms.layer_streaming import is_large, load_streamed_llm
from mtllm_edge_train.checkpoints.llm_weights import open_llm_weights
from tests.export.llms.test_families import inputs, torch_pooled
from tests.fixtures.tiny_checkpoint import save_llm
from tests.fixtures.tiny_llms import FAMILIES, LAYERS, save_family
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_as_the_whole(family: str, tmp_path: Path) -> None:
    save_family(tmp_path / "llm", family)
    llm = load_streamed_llm(LlmBody(open_llm_weights(tmp_path / "llm"), LAYERS, "causal"))
    rows = [torch.from_numpy(row) for row in inputs()]
    inputs_NLD = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_NL = torch.tensor([[1] * len(row) + [0] * (inputs_NLD.shape[1] - len(row)) for row in rows])
    with torch.inference_mode():
        for _ in range(2):  # a layer that was dropped comes back
            found_ND = llm(mask_NL, inputs_NLD=inputs_NLD).numpy()
            assert_vectors_close(found_ND, torch_pooled(tmp_path, "causal"), FLOAT32)
    assert all(parameter.is_meta for parameter in llm.model.layers.parameters())


@pytest.mark.parametrize("name", ["checkpoint", "nllb_checkpoint"])
def test_an_export_that_streams_has_the_same_comparison(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(name)
    whole = export_bundle(source, tmp_path / "whole", encoder_quantization="float32", llm_quantization="f32")
    monkeypatch.setattr(layer_streaming, "MIN_BYTES", 0)
    found = export_bundle(source, tmp_path / "streamed", encoder_quantization="float32", llm_quantization="f32")
    assert found.files == whole.files
    for row, other in zip(found.parity, whole.parity, strict=True):
        assert row.cosine_min >= 0.9999
        assert msgspec.structs.astuple(row)[1:3] == pytest.approx(msgspec.structs.astuple(other)[1:3], abs=1e-5)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    save_llm(tmp_path / "llm")
    weights = open_llm_weights(tmp_path / "llm")
    assert not is_large(LlmBody(weights, 2, "causal"))
    weights.config = {**weights.config, "intermediate_size": 256}
    llm = load_streamed_llm(LlmBody(weights, 2, "causal"))
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.gate_proj\.weight has shape \(128, 64\), .*\(256, 64\)"):
        llm(torch.ones(1, 3), inputs_NLD=torch.zeros(1, 3, 64))
