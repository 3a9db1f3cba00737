"""The stack as the student of distillation: configuration, building, forward pass and checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
from torch import Tensor

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import UsageError
from mtllm_edge.tokenization.encoding import Encoding
from mtllm_edge_train.checkpoints import tensors
from mtllm_edge_train.checkpoints.config import ENCODER_NAME, StackConfig
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.encoder import LoadedEncoder, load_encoder
from mtllm_edge_train.models.stack import LlmBody, Stack
from mtllm_edge_train.training.settings import LoopSettings


def student_config(start: Path, teacher: Path, *, name: str, sources: Sequence[WeightSource]) -> StackConfig:
    """Return the configuration of a student: that of the stack `start`, with the tasks of the LLM `teacher`.

    Raises:
        UsageError: The checkpoints do not belong together.
    """
    base, tuned = StackConfig.load(start), StackConfig.load(teacher)
    if base.encoder is None:
        raise UsageError(f"{start} has no encoder; name the checkpoint of a stack")
    if tuned.encoder is not None or not tuned.tasks:
        raise UsageError(f"{teacher} is no fine-tuned LLM; name the checkpoint of `train finetune`")
    if base.llm != tuned.llm:
        raise UsageError(f"{teacher} has the LLM {tuned.llm}, {start} has {base.llm}; train both on the same LLM")
    merged = tuple(dict.fromkeys((*base.sources, *tuned.sources, *sources)))
    return msgspec.structs.replace(base, name=name, tasks=tuned.tasks, sources=merged)


def build_llm(config: StackConfig, folder: Path | None, settings: LoopSettings) -> LlmBody:
    """Load an LLM with a new LoRA for training; see `loading.new_llm`."""
    llm = loading.new_llm(config, folder, dtype=settings.frozen_dtype, nf4=settings.nf4).to(settings.device)
    if settings.gradient_checkpointing:
        llm.enable_gradient_checkpointing()
    return llm


def build_student(
    config: StackConfig, folder: Path | None, settings: LoopSettings, *, train_encoder: bool = False
) -> tuple[Stack, LoadedEncoder]:
    """Build a stack for training, with a new bridge and LoRA, and return it with its encoder as loaded.

    Relative sources are looked up in `folder` first, the checkpoint that the student starts from. Frozen weights have
    the type of the settings, trained ones are float32. With `train_encoder`, the encoder is trained, but not its word
    embeddings.
    """
    encoder, tokenizer = loading.load_encoder_and_tokenizer(folder, config)
    if train_encoder:
        encoder.module.requires_grad_(True).get_input_embeddings().requires_grad_(False)
    else:
        encoder.module.to(settings.frozen_dtype)
    llm = build_llm(config, folder, settings)
    stack = Stack(encoder.module, tokenizer, llm, d_encoder=encoder.d_model, stride=config.bridge.stride)
    return stack.to(settings.device), encoder


def restore_weights(stack: Stack, folder: Path) -> None:
    """Load bridge, LoRA and, if it is trained, the encoder of a checkpoint into a stack.

    Raises:
        ModelError: They are missing, damaged, or of another shape.
    """
    loading.load_bridge(stack, folder)
    stack.llm.load_lora_state(tensors.read_lora(folder))
    if stack.encoder_learns:
        stack.encoder.load_state_dict(load_encoder(str(folder / ENCODER_NAME)).module.state_dict())


def save_student(folder: Path, config: StackConfig, stack: Stack, encoder: LoadedEncoder, start: Path) -> None:
    """Write a student into a folder, with its encoder if that is trained or part of the checkpoint `start`."""
    assert config.encoder is not None
    source = config.encoder.source
    if stack.encoder_learns:
        encoder.save(folder / ENCODER_NAME)
        config = msgspec.structs.replace(config, encoder=msgspec.structs.replace(config.encoder, source=ENCODER_NAME))
    elif not Path(source).is_absolute() and (start / source).is_dir():
        shutil.copytree(start / source, folder / source)
    loading.save_parts(folder, config, stack, stack.llm, stack.heads)


def run_student(stack: Stack, encoded: Sequence[Encoding], settings: LoopSettings) -> Tensor:
    """Pooled vectors (V, D) of tokenized texts, with gradients, and with dropout in the LoRA but not in the encoder."""
    stack.train()
    stack.encoder.eval()
    with settings.autocast():
        return stack.embed(encoded)
