"""Checkpoints as torch modules: loading and saving."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from mtllm_edge.errors import ModelError
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge_train.checkpoints.config import BRIDGE_NAME, CONFIG_NAME, LORA_NAME, StackConfig, resolve_source
from mtllm_edge_train.checkpoints.tensors import Array, head_path, read_bridge, read_head, read_lora
from mtllm_edge_train.models.encoder import load_encoder
from mtllm_edge_train.models.stack import LlmBody, Stack, load_llm_body


def save_parts(
    folder: Path, config: StackConfig, stack: Stack | None, llm: LlmBody, heads: torch.nn.ModuleDict
) -> None:
    """Write the parts of a checkpoint into an existing folder; `stack` is None for an LLM without an encoder."""
    folder.joinpath(CONFIG_NAME).write_bytes(config.to_json())
    if stack is not None:
        save_file(_arrays(stack.bridge.state_dict()), folder / BRIDGE_NAME)
    if config.lora is not None:
        save_file(_arrays(llm.lora_state()), folder / LORA_NAME)
    folder.joinpath("tasks").mkdir()
    for task, head in heads.items():
        save_file(_arrays(head.state_dict()), head_path(folder, task))


def _arrays(state: dict[str, Any]) -> dict[str, Array]:
    return {name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in state.items()}


def new_llm(config: StackConfig, folder: Path | None, *, dtype: torch.dtype, nf4: bool) -> LlmBody:
    """Load an LLM with new adapters. Relative sources are looked up in `folder` first."""
    body = load_llm_body(resolve_source(config.llm.source, folder), config.llm.layers, dtype=dtype, nf4=nf4)
    return LlmBody(body, bidirectional=config.llm.attention == "bidirectional", lora=config.lora)


def load_llm(
    folder: Path, config: StackConfig | None = None, *, dtype: torch.dtype = torch.float32, nf4: bool = False
) -> LlmBody:
    """Load the LLM body of a checkpoint with its adapter, in eval mode."""
    config = config or StackConfig.load(folder)
    llm = new_llm(config, folder, dtype=dtype, nf4=nf4)
    if config.lora is not None and (folder / LORA_NAME).exists():
        llm.load_lora_state(read_lora(folder))
    return llm.eval()


def load_heads(folder: Path, config: StackConfig, *, width: int) -> torch.nn.ModuleDict:
    """Load the heads of a checkpoint, on vectors of the given width, as a module dictionary."""
    heads = torch.nn.ModuleDict()
    for task, task_config in config.tasks.items():
        weight, bias = read_head(folder, task)
        if weight.shape != (task_config.rows, width):
            raise ModelError(
                f"{head_path(folder, task)} has weight {weight.shape}, the task and an LLM of width {width} need "
                f"{(task_config.rows, width)}; train the checkpoint again"
            )
        head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        head.weight.data.copy_(torch.from_numpy(weight))
        if bias is not None:
            head.bias.data.copy_(torch.from_numpy(bias))
        heads[task] = head
    return heads


def load_stack(folder: Path, llm: LlmBody | None = None) -> Stack:
    """Load a stack in float32 on the CPU, in eval mode; `llm` is its LLM with the adapter, if already loaded.

    Raises:
        ModelError: A part is missing, damaged, or of another shape.
    """
    config = StackConfig.load(folder)
    if config.encoder is None:
        raise ModelError(f"{folder} is an LLM without an encoder; run `mtllm-edge train distill` with it first")
    encoder, tokenizer = load_encoder_and_tokenizer(folder, config)
    llm = load_llm(folder, config) if llm is None else llm
    stack = Stack(encoder.module, tokenizer, llm, d_encoder=encoder.d_model, stride=config.bridge.stride)
    load_bridge(stack, folder)
    stack.heads = load_heads(folder, config, width=stack.llm.width)
    return stack.eval()


def load_bridge(stack: Stack, folder: Path) -> None:
    """Copy the bridge of a checkpoint into a stack.

    Raises:
        ModelError: The bridge is missing, damaged, or of another shape.
    """
    weight, bias = read_bridge(folder)
    bridge = stack.bridge
    expected = (tuple(bridge.weight.shape), tuple(bridge.bias.shape))
    if (weight.shape, bias.shape) != expected:
        raise ModelError(
            f"{folder / BRIDGE_NAME} has weight {weight.shape} and bias {bias.shape}, encoder, LLM and a stride of "
            f"{bridge.stride} need {expected[0]} and {expected[1]}; train the checkpoint again"
        )
    bridge.weight.data.copy_(torch.from_numpy(weight))
    bridge.bias.data.copy_(torch.from_numpy(bias))


def load_encoder_and_tokenizer(folder: Path | None, config: StackConfig) -> tuple[Any, Tokenizer]:
    """Load the encoder of a configuration, and its tokenizer as in the runtime."""
    assert config.encoder is not None
    encoder = load_encoder(resolve_source(config.encoder.source, folder))
    if config.encoder.max_tokens > encoder.max_positions:
        raise ModelError(
            f"{config.encoder.source} reads {encoder.max_positions} tokens, "
            f"the configuration asks for {config.encoder.max_tokens}; lower max_tokens"
        )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.json"
        path.write_text(encoder.tokenizer_json, encoding="utf-8")
        tokenizer = Tokenizer(
            path,
            prefix_tokens=encoder.prefix_tokens,
            suffix_tokens=encoder.suffix_tokens,
            max_tokens=config.encoder.max_tokens,
            languages=encoder.languages,
        )
    return encoder, tokenizer
