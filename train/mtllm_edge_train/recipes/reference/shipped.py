"""What this repository ships of the reference model, as starting points of further training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from mtllm_edge_train.checkpoints.config import BRIDGE_NAME, CONFIG_NAME, LORA_NAME, StackConfig
from mtllm_edge_train.checkpoints.tensors import head_path

_WORD = "embeddings.word_embeddings.weight"


def restore_encoder(shipped: Path, base: Path, folder: Path) -> None:
    """The translator's encoder as a transformers folder.

    Args:
        shipped: `reference/translator`, which holds all but the word embeddings that e5 has.
        base: The untouched encoder, as `recipe.build_encoder` writes it.
        folder: Existing folder to write to.
    """
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(shipped / "encoder.safetensors").items()}
    new_VD = tensors.pop("new_word_embeddings")
    known_VD = load_file(base / "model.safetensors")[_WORD][: -len(new_VD)]
    tensors[_WORD] = np.concatenate([known_VD, new_VD])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((base / name).read_bytes())


def restore_translator(shipped: Path, base: Path, folder: Path) -> None:
    """The whole translator, as `train_translator` saves it.

    Args:
        shipped: `reference/translator`.
        base: As for `restore_encoder`.
        folder: Existing folder to write to.
    """
    encoder, decoder = folder / "encoder", folder / "decoder"
    encoder.mkdir()
    restore_encoder(shipped, base, encoder)
    decoder.mkdir()
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(shipped / "decoder.safetensors").items()}
    save_file(tensors, decoder / "model.safetensors", metadata={"format": "pt"})
    for name in ("decoder/config.json", "decoder/tokenizer.json", "translation.json"):
        (folder / name).write_bytes((shipped / name).read_bytes())


def restore_stack(parts: Path, config: StackConfig, folder: Path) -> None:
    """The bridge, adapter and heads of shipped parts as a checkpoint.

    Args:
        parts: `reference/parts`.
        config: Of the checkpoint; its tasks are those of the parts.
        folder: Existing folder to write to.
    """
    (folder / CONFIG_NAME).write_bytes(config.to_json())
    (folder / BRIDGE_NAME).write_bytes((parts / BRIDGE_NAME).read_bytes())
    lora = load_file(parts / LORA_NAME)
    save_file({name: tensor.astype(np.float32) for name, tensor in lora.items()}, folder / LORA_NAME)
    (folder / "tasks").mkdir()
    for task in config.tasks:
        head_path(folder, task).write_bytes((parts / "tasks" / task / "head.safetensors").read_bytes())
