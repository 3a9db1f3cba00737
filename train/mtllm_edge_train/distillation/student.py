"""The stack as the student of both distillations: built for training, restored, run on a batch, and saved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from mtllm_edge.tokenization.encoding import Spans
from mtllm_edge_train.checkpoints import tensors
from mtllm_edge_train.checkpoints.config import ENCODER_NAME, StackConfig, resolve_source
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.encoder import LoadedEncoder, load_encoder
from mtllm_edge_train.models.stack import LlmBody, Stack, load_llm_body, pad_right
from mtllm_edge_train.training import settings


def build_stack(
    config: StackConfig, folder: Path | None, dtype: torch.dtype, *, nf4: bool = False, learn_encoder: bool = False
) -> tuple[Stack, LoadedEncoder]:
    """A fresh stack for training, and the encoder in it as it was loaded.

    Args:
        config: What it is made of.
        folder: The checkpoint that it starts from, where relative sources are looked up first.
        dtype: Of the frozen weights; bridge, adapters and an encoder that learns stay in float32.
        nf4: Pack the LLM's frozen weights in NF4 instead.
        learn_encoder: Let all of the encoder learn but its table of word embeddings.
    """
    encoder, tokenizer = loading.load_encoder_and_tokenizer(folder, config)
    if learn_encoder:
        encoder.module.requires_grad_(True).get_input_embeddings().requires_grad_(False)
    else:
        encoder.module.to(dtype)
    body = load_llm_body(resolve_source(config.llm.source, folder), config.llm.layers, dtype=dtype, nf4=nf4)
    llm = LlmBody(body, bidirectional=config.llm.attention == "bidirectional", lora=config.lora)
    stack = Stack(encoder.module, tokenizer, llm, d_encoder=encoder.d_model, stride=config.bridge.stride)
    return stack, encoder


def restore_weights(stack: Stack, folder: Path) -> None:
    """Copy a checkpoint's bridge, adapters and, where it learns, encoder into a stack.

    Raises:
        ModelError: They are missing, damaged, or of another shape.
    """
    loading.load_bridge(stack, folder)
    stack.llm.load_lora_state(tensors.read_lora(folder))
    if stack.encoder_learns:
        stack.encoder.load_state_dict(load_encoder(str(folder / ENCODER_NAME)).module.state_dict())


def save_student(folder: Path, config: StackConfig, stack: Stack, encoder: LoadedEncoder, start: Path) -> None:
    """Write a student as a checkpoint that holds its encoder, if that learned or if the start held it.

    Args:
        folder: Where to write; the caller renames it into place.
        config: Of the student, its encoder's source as in the start.
        stack: The weights.
        encoder: What `build_stack` returned beside the stack.
        start: The checkpoint that the student started from.
    """
    named = config.encoder
    assert named is not None
    if stack.encoder_learns:
        encoder.save(folder / ENCODER_NAME)
        config = msgspec.structs.replace(config, encoder=msgspec.structs.replace(named, source=ENCODER_NAME))
    elif not Path(named.source).is_absolute() and (start / named.source).is_dir():
        shutil.copytree(start / named.source, folder / named.source)
    loading.save_parts(folder, config, stack, stack.llm, stack.heads)


def run_student(
    stack: Stack, batch: Sequence[Sequence[int]], settings: settings.LoopSettings, spans: Sequence[Spans] | None = None
) -> Tensor:
    """Pooled vectors (V, D) of rows of token ids, with gradients, and with dropout in all but the encoder.

    Args:
        stack: The stack; everything in it but the encoder goes into training mode.
        batch: Token ids of each text.
        settings: Device and type.
        spans: What of each text is pooled; see `mtllm_edge_train.models.stack.span_means`.
    """
    ids_NL, mask_NL = pad_right(batch, device=settings.device)
    stack.train()
    stack.encoder.eval()  # also where it learns: it learns as it will be read
    with settings.autocast():
        pooled_VD: Tensor = stack(ids_NL, mask_NL, spans)
    return pooled_VD
