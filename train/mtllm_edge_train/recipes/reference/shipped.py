"""The shipped reference model as a starting point of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from mtllm_edge_train.checkpoints.config import BRIDGE_NAME, CONFIG_NAME, LORA_NAME, StackConfig
from mtllm_edge_train.checkpoints.tensors import head_path, read_tensors

_WORD = "embeddings.word_embeddings.weight"


def restore_encoder(shipped: Path, base: Path, folder: Path) -> None:
    """Write the encoder of the translator as a transformers folder.

    `shipped` lacks the word embeddings of e5, which `base`, the original encoder from `stages.build_encoder`, contains.
    """
    tensors = read_tensors(shipped / "encoder.safetensors")
    new_VD = tensors.pop("new_word_embeddings")
    e5_VD = load_file(base / "model.safetensors")[_WORD][: -len(new_VD)]
    tensors[_WORD] = np.concatenate([e5_VD, new_VD])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((base / name).read_bytes())


def restore_translator(shipped: Path, base: Path, folder: Path) -> None:
    """Write the translator in the format of `TranslatorTraining`; arguments as in `restore_encoder`."""
    encoder, decoder = folder / "encoder", folder / "decoder"
    encoder.mkdir()
    restore_encoder(shipped, base, encoder)
    decoder.mkdir()
    save_file(read_tensors(shipped / "decoder.safetensors"), decoder / "model.safetensors", metadata={"format": "pt"})
    for name in ("decoder/config.json", "decoder/tokenizer.json", "translation.json"):
        (folder / name).write_bytes((shipped / name).read_bytes())


def restore_stack(parts: Path, config: StackConfig, folder: Path) -> None:
    """Write the bridge, adapter and heads of the shipped parts as a checkpoint."""
    (folder / CONFIG_NAME).write_bytes(config.to_json())
    (folder / BRIDGE_NAME).write_bytes((parts / BRIDGE_NAME).read_bytes())
    save_file(read_tensors(parts / LORA_NAME), folder / LORA_NAME)
    (folder / "tasks").mkdir()
    for task in config.tasks:
        head_path(folder, task).write_bytes((parts / "tasks" / task / "head.safetensors").read_bytes())
