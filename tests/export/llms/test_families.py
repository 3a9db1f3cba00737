"""Every family in llama.cpp against transformers, with the parts in which they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mtllm_edge.errors import ModelError
from mtllm_edge_export.llms.body import Attention, LlmBody, LlmSummary
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_train.checkpoints.config import LlmConfig, LoraConfig, StackConfig
from mtllm_edge_train.checkpoints.llm_weights import open_llm_weights
from mtllm_edge_train.models.loading import load_llm
from tests.fixtures.run_gguf import cosines, pool_gguf
from tests.fixtures.tiny_llms import FAMILIES, LAYERS, WIDTH, WINDOW, save_family
from tests.fixtures.tolerances import ENGINES, assert_vectors_close

Array = NDArray[np.float32]
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def inputs() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((length, WIDTH), dtype=np.float32) for length in (3 * WINDOW, 7, 1, 33)]


def torch_pooled(folder: Path, attention: Attention, *, adapted: bool = False) -> Array:
    """One padded batch, so that masks count."""
    config = StackConfig(
        checkpoint_version=1,
        name="t",
        encoder=None,
        llm=LlmConfig(source="llm", layers=LAYERS, attention=attention),
        lora=LoraConfig(rank=4, alpha=8.0) if adapted else None,
        tasks={},
        sources=(),
    )
    rows = [torch.from_numpy(row) for row in inputs()]
    inputs_NLD = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_NL = torch.tensor([[1] * len(row) + [0] * (inputs_NLD.shape[1] - len(row)) for row in rows])
    with torch.inference_mode():
        pooled: Array = load_llm(folder, config)(mask_NL, inputs_NLD=inputs_NLD).numpy()
    return pooled


def random_lora(folder: Path, rank: int = 4) -> dict[str, Array]:
    """An adapter of every matrix of the family."""
    rng = np.random.default_rng(3)
    lora: dict[str, Array] = {}
    state = torch.nn.Module.state_dict(load_llm(folder, _plain()).model)
    for name, weight in state.items():
        if weight.ndim == 2 and name.startswith("layers."):
            module = name.removesuffix(".weight")
            lora[f"{module}.lora_A"] = rng.standard_normal((rank, weight.shape[1]), dtype=np.float32) * np.float32(0.1)
            lora[f"{module}.lora_B"] = rng.standard_normal((weight.shape[0], rank), dtype=np.float32) * np.float32(0.1)
    return lora


def _plain(layers: int = LAYERS) -> StackConfig:
    llm = LlmConfig(source="llm", layers=layers, attention="causal")
    return StackConfig(checkpoint_version=1, name="t", encoder=None, llm=llm, lora=None, tasks={}, sources=())


def written(folder: Path, attention: Attention, lora: dict[str, Array] | None = None) -> LlmSummary:
    body = LlmBody(open_llm_weights(folder / "llm"), LAYERS, attention, lora or {}, 2.0)
    return write_llm(folder / "llm.gguf", body, "f32")


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_torch(family: str, attention: Attention, tmp_path: Path) -> None:
    save_family(tmp_path / "llm", family)
    expected_ND = torch_pooled(tmp_path, attention)
    summary = written(tmp_path, attention)
    architecture = ARCHITECTURES.get(family, family)
    if architecture == "llama" and attention == "bidirectional":
        architecture = "llama-embed"
    assert summary == LlmSummary(architecture, WIDTH, LAYERS, {"f32": 7 * LAYERS})
    found_ND = pool_gguf(tmp_path / "llm.gguf", summary, attention, inputs())
    assert_vectors_close(found_ND, expected_ND, ENGINES)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_adapters_are_merged_before_anything_is_scaled(family: str, tmp_path: Path) -> None:
    save_family(tmp_path / "llm", family)
    lora = random_lora(tmp_path)
    plain_ND = torch_pooled(tmp_path, "causal")
    save_file(lora, tmp_path / "lora.safetensors")
    expected_ND = torch_pooled(tmp_path, "causal", adapted=True)
    assert cosines(plain_ND, expected_ND).max() < 0.99
    found_ND = pool_gguf(tmp_path / "llm.gguf", written(tmp_path, "causal", lora), "causal", inputs())
    assert cosines(expected_ND, found_ND).min() >= 0.9999


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("mistral", {"sliding_window": WINDOW}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
        ("gemma2", {"sliding_window": 256}),
        ("gemma2", {"attn_logit_softcapping": 1e6}),
        ("gemma2", {"query_pre_attn_scalar": 24}),
        ("gemma3_text", {"sliding_window": 256}),
        ("gemma3_text", {"query_pre_attn_scalar": 24}),
        ("gemma3_text", {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
        ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 4000.0}}}),
    ],
)
def test_what_sets_a_family_apart_shows_in_its_vectors(family: str, change: dict[str, Any], tmp_path: Path) -> None:
    """Else the tests above could pass without it."""
    for folder, changes in ((tmp_path / "own", {}), (tmp_path / "other", change)):
        save_family(folder / "llm", family, **changes)
    assert cosines(torch_pooled(tmp_path / "own", "causal"), torch_pooled(tmp_path / "other", "causal"))[0] < 0.9998


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_the_deepest_gemmas_have_queries_of_another_scale(family: str, layers: int, tmp_path: Path) -> None:
    """llama.cpp knows them by their number of layers."""
    patterns = {} if family == "gemma2" else {"layer_types": None}
    save_family(tmp_path / "llm", family, num_hidden_layers=layers, initializer_range=0.05, **patterns)
    body = LlmBody(open_llm_weights(tmp_path / "llm"), None, "causal")
    summary = write_llm(tmp_path / "llm.gguf", body, "f32")
    model = load_llm(tmp_path, _plain(layers)).model
    with torch.inference_mode():
        rows = [model(inputs_embeds=torch.from_numpy(row)[None]).last_hidden_state[0].mean(0) for row in inputs()]
    found_ND = pool_gguf(tmp_path / "llm.gguf", summary, "causal", inputs())
    assert cosines(torch.stack(rows).numpy(), found_ND).min() >= 0.9999


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_a_window_that_llama_cpp_lacks_must_not_be_needed(family: str, tmp_path: Path) -> None:
    window = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
    save_family(tmp_path / "llm", family, **window)
    weights = open_llm_weights(tmp_path / "llm")
    with pytest.raises(ModelError, match=f"sliding window of {WINDOW} tokens.*up to 25 tokens; lower max_tokens"):
        write_llm(tmp_path / "llm.gguf", LlmBody(weights, None, "causal", max_tokens=WINDOW + 1), "f32")
    with pytest.raises(ModelError, match="inputs of any length"):
        write_llm(tmp_path / "llm.gguf", LlmBody(weights, None, "causal"), "f32")
    for attention, max_tokens in (("causal", WINDOW), ("bidirectional", None)):
        write_llm(tmp_path / "llm.gguf", LlmBody(weights, None, attention, max_tokens=max_tokens), "f32")


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"model_type": "gpt2"}, "is a 'gpt2' model; this release exports llama, mistral, qwen2"),
        ("qwen2", {"head_dim": 24}, "4 heads of 24, which is not its width 64"),
        ("qwen3", {"rope_parameters": {"rope_type": "llama3"}}, "uses RoPE scaling 'llama3'"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "no_rope_layers.*train on a plain smollm3"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"sliding_window": None}, "sliding_window"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "in layers with a sliding window by 'linear'",
        ),
    ],
)
def test_refuses_what_the_graph_has_no_place_for(
    family: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_family(tmp_path / "llm", family)
    weights = open_llm_weights(tmp_path / "llm")
    weights.config = {**weights.config, **change}
    with pytest.raises(ModelError, match=message):
        write_llm(tmp_path / "llm.gguf", LlmBody(weights, None, "causal"), "f32")
    assert not (tmp_path / "llm.gguf").exists()


def test_older_configurations_keep_rotary_bases_elsewhere(tmp_path: Path) -> None:
    save_family(tmp_path / "llm", "gemma3_text")
    weights = open_llm_weights(tmp_path / "llm")
    write_llm(tmp_path / "new.gguf", LlmBody(weights, None, "causal"), "f32")
    positions = weights.config.pop("rope_parameters")
    weights.config["rope_theta"] = positions["full_attention"]["rope_theta"]
    weights.config["rope_local_base_freq"] = positions["sliding_attention"]["rope_theta"]
    weights.config["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    write_llm(tmp_path / "old.gguf", LlmBody(weights, None, "causal"), "f32")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()
