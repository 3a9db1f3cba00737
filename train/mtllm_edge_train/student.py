"""The stack as the student of both distillations: built for training, restored, and run on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtllm_edge.framing import Spans
from mtllm_edge_train import checkpoint, loop
from mtllm_edge_train.config import StackConfig, resolve_source
from mtllm_edge_train.model import LlmBody, Stack, load_llm_body, load_llm_tokenizer, pad_right


def build_stack(
    config: StackConfig, folder: Path | None, dtype: torch.dtype, *, nf4: bool = False
) -> tuple[Stack, Any]:
    """A fresh stack for training, and the LLM's own tokenizer.

    The frozen weights are kept in `dtype`, or the LLM's in NF4; bridge and adapters stay in float32.
    """
    encoder, tokenizer = checkpoint.load_framed_encoder(folder, config)
    source = resolve_source(config.llm.source, folder)
    body = load_llm_body(source, config.llm.layers, dtype=dtype, nf4=nf4)
    llm = LlmBody(body, bidirectional=config.llm.attention == "bidirectional", lora=config.lora)
    stack = Stack(encoder.module.to(dtype), tokenizer, llm, d_encoder=encoder.d_model, stride=config.bridge.stride)
    return stack, load_llm_tokenizer(source)


def restore_weights(stack: Stack, folder: Path) -> None:
    """Copy a checkpoint's bridge and adapters into a stack.

    Raises:
        ModelError: They are missing, damaged, or of another shape.
    """
    checkpoint.load_bridge(stack, folder)
    stack.llm.load_lora_state(checkpoint.read_lora(folder))


def run_student(
    stack: Stack, batch: Sequence[Sequence[int]], settings: loop.LoopSettings, spans: Sequence[Spans] | None = None
) -> Tensor:
    """Pooled vectors (V, D) of rows of token ids, with gradients and dropout in all but the frozen encoder.

    Args:
        stack: The stack; everything in it but the encoder goes into training mode.
        batch: Token ids of each text.
        settings: Device and type.
        spans: What of each text is pooled; see `mtllm_edge_train.model.span_means`.
    """
    ids_NL, mask_NL = pad_right(batch, device=settings.device)
    stack.train()
    stack.encoder.eval()
    with settings.autocast():
        pooled_VD: Tensor = stack(ids_NL, mask_NL, spans)
    return pooled_VD
