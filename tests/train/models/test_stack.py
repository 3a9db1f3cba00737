"""The LLM body under training."""

from __future__ import annotations

import torch
import transformers

from mtllm_edge_train.checkpoints.config import LoraConfig
from mtllm_edge_train.models.stack import LlmBody


def test_gradient_checkpointing_keeps_the_gradients() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=70,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    lora = LoraConfig(rank=4, alpha=8.0, dropout=0.05)
    llm = LlmBody(transformers.LlamaModel(config), bidirectional=True, lora=lora)
    for name, tensor in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor)
    passes: list[bool] = []
    llm.model.get_base_model().layers[0].mlp.register_forward_pre_hook(lambda mlp, _: passes.append(mlp.training))
    mask_NL, inputs_NLD = torch.ones(2, 5, dtype=torch.long), torch.randn(2, 5, 32)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)  # for the dropout
        llm.zero_grad()
        llm.train()(mask_NL, inputs_NLD=inputs_NLD).square().sum().backward()
        return [tensor.grad.clone() for tensor in llm.parameters() if tensor.grad is not None]

    plain = gradients()
    assert passes == [True]
    llm.enable_gradient_checkpointing()
    for expected, actual in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(actual, expected)
    assert passes == [True] * 3  # the layer was recomputed
    with torch.no_grad(), llm.without_lora():
        llm(mask_NL, inputs_NLD=inputs_NLD)
    assert passes[3:] == [False]
