"""Calibration texts make 4-bit LLMs better on texts like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mtllm_edge.bundle.manifest import GgufQuantization
from mtllm_edge.errors import UsageError
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_export.llms.body import LlmBody
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_export.quantization.imatrix import importance_matrix, load_texts
from mtllm_edge_train.checkpoints.llm_weights import open_llm_weights
from mtllm_edge_train.models.loading import load_stack
from tests.fixtures.run_gguf import cosines, pool_gguf
from tests.fixtures.tiny_checkpoint import save_llm
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close

TEXTS = "# a remark\nHello world.\ndeu_Latn\tGuten Morgen, Welt!\n\nThe rocket reached orbit.\n"


def test_every_matrix_has_the_mean_squares_of_its_inputs(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text(TEXTS, encoding="utf-8")
    sentences = load_texts(tmp_path / "texts.txt")
    assert [(s.language, s.text) for s in sentences][:2] == [
        ("eng_Latn", "Hello world."),
        ("deu_Latn", "Guten Morgen, Welt!"),
    ]
    stack = load_stack(checkpoint)
    found = importance_matrix(stack, sentences, ())
    assert len(found) == 7 * 2
    inputs = []
    layer = dict(stack.llm.model.named_modules())["base_model.model.layers.0.input_layernorm"]
    handle = layer.register_forward_hook(lambda _, __, output: inputs.append(output[0]))
    with torch.inference_mode():
        for sentence in sentences:
            stack.embed(stack.tokenizer.encode([sentence.text]))
    handle.remove()
    expected_I = torch.cat(inputs).square().mean(0).numpy()
    for name in ("q_proj", "k_proj", "v_proj"):
        assert_vectors_close(found[f"layers.0.self_attn.{name}.weight"], expected_I, FLOAT32)


@pytest.mark.parametrize("quantization", ["q4_0", "iq4_nl", "q4_k_m"])
def test_what_texts_use_most_loses_least(quantization: GgufQuantization, tmp_path: Path) -> None:
    """Inputs that vary in a few dimensions only: with these as the important ones, the vectors turn less."""
    save_llm(tmp_path / "llm", width=256, layers=1)
    rng = np.random.default_rng(0)
    scale_I = np.where(rng.random(256) < 0.1, 8.0, 0.2).astype(np.float32)
    inputs = [rng.standard_normal((30, 256), dtype=np.float32) * scale_I for _ in range(4)]
    weights = {f"layers.0.self_attn.{name}_proj.weight": scale_I**2 for name in "qkv"}
    weights |= {f"layers.0.mlp.{name}_proj.weight": scale_I**2 for name in ("gate", "up")}
    body = LlmBody(open_llm_weights(tmp_path / "llm"), None, "causal")
    exact_ND = pool_gguf(tmp_path / "x", write_llm(tmp_path / "x", body, "f32"), "causal", inputs)
    error = {}
    for name, known in (("without", None), ("with", weights)):
        path = tmp_path / f"{name}.gguf"
        summary = write_llm(path, body, quantization, known)
        found_ND = pool_gguf(path, summary, "causal", inputs, quantization=quantization)
        error[name] = 1 - cosines(exact_ND, found_ND).mean()
    assert error["with"] < 0.9 * error["without"]


def test_a_bundle_is_calibrated(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text(TEXTS, encoding="utf-8")
    plain = export_bundle(checkpoint, tmp_path / "plain", llm_quantization="iq4_nl")
    calibrated = export_bundle(
        checkpoint, tmp_path / "calibrated", llm_quantization="iq4_nl", calibration=tmp_path / "texts.txt"
    )
    assert plain.files["llm.gguf"].sha256 != calibrated.files["llm.gguf"].sha256
    assert calibrated.llm.quantization == "iq4_nl"


def test_texts_that_are_of_no_use(checkpoint: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    with pytest.raises(UsageError, match=r"texts\.txt is not readable"):
        export_bundle(checkpoint, tmp_path / "out", llm_quantization="q4_0", calibration=texts)
    texts.write_text("# nothing\n\n")
    with pytest.raises(UsageError, match=r"texts\.txt contains no text"):
        export_bundle(checkpoint, tmp_path / "out", llm_quantization="q4_0", calibration=texts)
    with pytest.raises(UsageError, match=r"q8_0 does not use calibration texts.*q4_0, q4_k_m, iq4_nl"):
        export_bundle(checkpoint, tmp_path / "out", calibration=texts)
    assert not (tmp_path / "out").exists()
