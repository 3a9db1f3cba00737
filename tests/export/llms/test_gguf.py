"""The headless GGUF in llama.cpp against the same body, adapter included, in torch."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mtllm_edge.bundle.manifest import GgufQuantization
from mtllm_edge.errors import ModelError
from mtllm_edge_export.llms.body import Attention, LlmBody, LlmSummary
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_train.checkpoints.config import LlmConfig, LoraConfig, StackConfig
from mtllm_edge_train.checkpoints.llm_weights import open_llm_weights
from mtllm_edge_train.models.loading import load_llm
from tests.fixtures.run_gguf import cosines, pool_gguf
from tests.fixtures.tiny_checkpoint import random_lora, save_llm
from tests.fixtures.tolerances import ENGINES, assert_vectors_close

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LAYERS, WIDTH = 2, 64


def sequences(width: int = WIDTH) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((length, width), dtype=np.float32) for length in (150, 7, 1, 33)]


def torch_pooled(folder: Path, attention: Attention, *, adapted: bool, width: int = WIDTH) -> NDArray[np.float32]:
    lora = LoraConfig(rank=4, alpha=8.0) if adapted else None
    if adapted:
        save_file(random_lora(width, LAYERS), folder / "lora.safetensors")
    llm = LlmConfig(source="llm", layers=LAYERS, attention=attention)
    config = StackConfig(checkpoint_version=1, name="t", encoder=None, llm=llm, lora=lora, tasks={}, sources=())
    body = load_llm(folder, config)
    with torch.inference_mode():
        rows = [
            body(torch.ones(1, len(inputs), dtype=torch.long), inputs_NLD=torch.from_numpy(inputs)[None])
            for inputs in sequences(width)
        ]
    return torch.cat(rows).numpy()


def write(
    folder: Path, attention: Attention, quantization: GgufQuantization, *, adapted: bool, width: int = WIDTH
) -> LlmSummary:
    lora = random_lora(width, LAYERS) if adapted else {}
    body = LlmBody(open_llm_weights(folder / "llm"), LAYERS, attention, lora, 2.0)
    return write_llm(folder / "llm.gguf", body, quantization)


@pytest.mark.parametrize("rope", [None, LLAMA3], ids=["plain", "llama3"])
@pytest.mark.parametrize("adapted", [False, True], ids=["bare", "lora"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_float32_is_torch(attention: Attention, adapted: bool, rope: dict[str, Any] | None, tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=WIDTH, rope=rope)
    expected_ND = torch_pooled(tmp_path, attention, adapted=adapted)
    summary = write(tmp_path, attention, "f32", adapted=adapted)
    assert summary == LlmSummary("llama" if attention == "causal" else "llama-embed", WIDTH, LAYERS, {"f32": 14})
    found_ND = pool_gguf(tmp_path / "llm.gguf", summary, attention, sequences())
    assert_vectors_close(found_ND, expected_ND, ENGINES)


def test_the_adapter_and_the_attention_matter(tmp_path: Path) -> None:
    """Else the test above could pass with either ignored."""
    save_llm(tmp_path / "llm", width=WIDTH)
    causal = torch_pooled(tmp_path, "causal", adapted=False)
    assert cosines(causal, torch_pooled(tmp_path, "causal", adapted=True)).max() < 0.9
    assert cosines(causal, torch_pooled(tmp_path, "bidirectional", adapted=False)).min() < 0.99


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize(
    ("quantization", "lowest", "types"),
    [
        ("f16", 0.9999, {"f16"}),
        ("bf16", 0.9995, {"bf16"}),
        ("q8_0", 0.998, {"q8_0"}),
        ("q4_0", 0.85, {"q4_0"}),
        ("q4_k_m", 0.85, {"q4_k", "q6_k"}),
        ("iq4_nl", 0.85, {"iq4_nl"}),
    ],
)
def test_every_quantisation(
    quantization: GgufQuantization, lowest: float, types: set[str], width: int, tmp_path: Path
) -> None:
    save_llm(tmp_path / "llm", width=width)
    expected_ND = torch_pooled(tmp_path, "causal", adapted=True, width=width)
    summary = write(tmp_path, "causal", quantization, adapted=True, width=width)
    if quantization == "q4_k_m" and width == 64:  # no multiple of 256, which k-quants need
        types = {"q5_0", "q8_0"}
    assert set(summary.matrix_types) == types
    assert sum(summary.matrix_types.values()) == 7 * LAYERS
    found_ND = pool_gguf(tmp_path / "llm.gguf", summary, "causal", sequences(width), quantization=quantization)
    assert cosines(expected_ND, found_ND).min() >= lowest
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["llm.gguf"]


def test_the_file_is_headless_and_names_no_one(tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=WIDTH)
    write(tmp_path, "causal", "f32", adapted=False)
    reader = gguf.GGUFReader(tmp_path / "llm.gguf")
    shapes = {tensor.name: tuple(tensor.shape) for tensor in reader.tensors}
    assert "output.weight" not in shapes
    assert shapes["token_embd.weight"][1] <= 32
    assert reader.fields["tokenizer.ggml.model"].contents() == "none"
    assert not any(key.startswith("tokenizer.ggml.tokens") for key in reader.fields)
    assert {name.split(".")[1] for name in shapes if name.startswith("blk.")} == {"0", "1"}


def test_reading_it_back_gives_the_weights(tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=WIDTH)
    write(tmp_path, "causal", "f32", adapted=False)
    source, copy = open_llm_weights(tmp_path / "llm"), open_llm_weights(tmp_path / "llm.gguf")
    for name in ("layers.1.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight", "norm.weight"):
        np.testing.assert_array_equal(source.tensor(name), copy.tensor(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "uses RoPE scaling 'yarn'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_hidden_layers": 1}, "has 1 layers, 2 requested"),
        ({"intermediate_size": 96}, r"has shape \(128, 64\), its configuration says \(96, 64\)"),
    ],
)
def test_refuses_what_it_cannot_write(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=WIDTH)
    weights = open_llm_weights(tmp_path / "llm")
    weights.config = {**weights.config, **change}
    with pytest.raises(ModelError, match=message):
        write_llm(tmp_path / "llm.gguf", LlmBody(weights, 2, "causal"), "f32")


def test_older_configurations_keep_the_rotary_base_elsewhere(tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=WIDTH, rope=LLAMA3)
    weights = open_llm_weights(tmp_path / "llm")
    write_llm(tmp_path / "new.gguf", LlmBody(weights, 2, "causal"), "f32")
    older = {key: value for key, value in weights.config.items() if key != "rope_parameters"}
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    weights.config = {**older, "rope_theta": LLAMA3["rope_theta"], "rope_scaling": scaling}
    write_llm(tmp_path / "old.gguf", LlmBody(weights, 2, "causal"), "f32")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


@pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0"])
def test_memory_is_that_of_the_largest_matrix(quantization: GgufQuantization, tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=512, layers=8)
    body = LlmBody(open_llm_weights(tmp_path / "llm"), None, "causal")
    largest, whole = 4 * 512 * 1024, sum(path.stat().st_size for path in (tmp_path / "llm").glob("*.safetensors"))
    assert whole > 30 * largest
    tracemalloc.start()
    try:
        write_llm(tmp_path / "llm.gguf", body, quantization)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * largest
