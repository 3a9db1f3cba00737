"""Stacks as published by the authors of the paper: one transformers folder with encoder, up-projection and LLM.

`fdschmidt93/NLLB-LLM2Vec-Meta-Llama-31-8B-Instruct-mntp-unsup-simcse` is such a folder. Its configuration nests those
of NLLB and the LLM, its tensors are called ``nllb_encoder.*``, ``up_proj.*`` and ``llm2vec.*``, and the adapters are
merged. The code in the folder is not run.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import ModelError
from mtllm_edge_train.checkpoints.config import (
    BRIDGE_NAME,
    CHECKPOINT_VERSION,
    CONFIG_NAME,
    ENCODER_NAME,
    EncoderConfig,
    LlmConfig,
    StackConfig,
)
from mtllm_edge_train.checkpoints.llm_weights import STACKED, Shards, read_config

MAX_TOKENS = 512
"""Maximum input length in the training of these stacks."""
_ENCODER = "nllb_encoder."
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "sentencepiece.bpe.model")
_SOURCES = (
    WeightSource(part="encoder", name="facebook/nllb-200-distilled-600M", license="CC-BY-NC-4.0"),
    WeightSource(part="llm", name="the LLM of the published stack", license="see the model's page"),
)


def is_published(folder: Path) -> bool:
    """Return whether a folder holds a published stack."""
    if (folder / CONFIG_NAME).exists():
        return False
    try:
        return bool(read_config(folder).get("model_type") == STACKED)
    except ModelError:  # reported by the reader of whatever the folder holds
        return False


@contextmanager
def as_checkpoint(folder: Path) -> Iterator[Path]:
    """Yield a checkpoint folder: `folder` itself, or a temporary checkpoint of a published stack.

    The temporary checkpoint refers to the LLM in `folder`, by far the largest part.

    Raises:
        ModelError: A part of the published stack is missing.
    """
    if not is_published(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch)
        _convert(folder.resolve(), checkpoint)
        yield checkpoint


def _convert(folder: Path, checkpoint: Path) -> None:
    shards = Shards(folder)
    encoder = _encoder_config(folder)
    config = StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name=folder.name,
        encoder=EncoderConfig(source=ENCODER_NAME, max_tokens=min(MAX_TOKENS, int(encoder["max_position_embeddings"]))),
        llm=LlmConfig(source=str(folder), layers=None, attention="bidirectional"),
        lora=None,
        tasks={},
        sources=_SOURCES,
    )
    (checkpoint / CONFIG_NAME).write_bytes(config.to_json())
    weight = shards.tensor("up_proj.weight")
    has_bias = "up_proj.bias" in shards.names
    bias = shards.tensor("up_proj.bias") if has_bias else np.zeros(len(weight), np.float32)
    save_file({"weight": weight, "bias": bias}, checkpoint / BRIDGE_NAME)
    _write_encoder(checkpoint / ENCODER_NAME, encoder, shards, folder)


def _encoder_config(folder: Path) -> dict[str, Any]:
    """The nested configuration of NLLB, with one decoder layer, because the stack has no decoder."""
    parts = [part for part in read_config(folder).values() if isinstance(part, dict)]
    for part in parts:
        if part.get("model_type") == "m2m_100":
            return {**part, "decoder_layers": 1, "is_encoder_decoder": True}
    raise ModelError(f"{folder / 'config.json'} nests no m2m_100 configuration; download the model again")


def _write_encoder(target: Path, config: dict[str, Any], shards: Shards, folder: Path) -> None:
    """Write a transformers folder with the encoder of NLLB and its tokenizer."""
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        "model.encoder." + name.removeprefix(_ENCODER): shards.tensor(name)
        for name in shards.names
        if name.startswith(_ENCODER)
    }
    embeddings = tensors.pop("model.encoder.embed_tokens.weight", None)
    if embeddings is None:
        raise ModelError(f"{folder} lacks the tensor {_ENCODER}embed_tokens.weight; download the model again")
    save_file({"model.shared.weight": embeddings, **tensors}, target / "model.safetensors", metadata={"format": "pt"})
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
