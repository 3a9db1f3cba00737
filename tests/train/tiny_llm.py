"""A tiny random LLM with a tokenizer of its own, for tests that train in a second."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from tests.export.tiny_checkpoint import _bert_tokenizer


def save_llm_and_tokenizer(folder: Path) -> None:
    """A Llama of two layers that reads bytes."""
    tokenizer = _bert_tokenizer()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
    )
    transformers.LlamaModel(config).save_pretrained(folder)
