"""Stacks as their authors publish them: one transformers folder with encoder, up-projection and LLM.

`fdschmidt93/NLLB-LLM2Vec-Meta-Llama-31-8B-Instruct-mntp-unsup-simcse` is such a folder. Its configuration nests NLLB's
and the LLM's, its tensors are called ``nllb_encoder.*``, ``up_proj.*`` and ``llm2vec.*``, the adapters are merged in.
It is read as data: the code that comes with it is not run.
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
"""Longest input that these stacks were trained on."""
_ENCODER = "nllb_encoder."
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "sentencepiece.bpe.model")
_SOURCES = (
    WeightSource(part="encoder", name="facebook/nllb-200-distilled-600M", license="CC-BY-NC-4.0"),
    WeightSource(part="llm", name="the LLM of the published stack", license="see the model's page"),
)


def is_published(folder: Path) -> bool:
    """Whether a folder holds such a stack."""
    if (folder / CONFIG_NAME).exists():
        return False
    try:
        return bool(read_config(folder).get("model_type") == STACKED)
    except ModelError:  # whoever reads the folder for what it is says what is wrong with it
        return False


@contextmanager
def as_checkpoint(folder: Path) -> Iterator[Path]:
    """A checkpoint's folder: the same where it is one, and a temporary one made of a published stack.

    The LLM, by far the largest part, stays where it is.

    Raises:
        ModelError: A part of the published stack is missing.
    """
    if not is_published(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch)
        _take_apart(folder.resolve(), checkpoint)
        yield checkpoint


def _take_apart(folder: Path, checkpoint: Path) -> None:
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
    """NLLB's nested configuration, with one layer of the decoder, which the stack does not have."""
    parts = [part for part in read_config(folder).values() if isinstance(part, dict)]
    for part in parts:
        if part.get("model_type") == "m2m_100":
            return {**part, "decoder_layers": 1, "is_encoder_decoder": True}
    raise ModelError(f"{folder / 'config.json'} nests no m2m_100 configuration; download the model again")


def _write_encoder(target: Path, config: dict[str, Any], shards: Shards, folder: Path) -> None:
    """A transformers folder of an NLLB without a decoder, and its tokenizer."""
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        "model.encoder." + name.removeprefix(_ENCODER): shards.tensor(name)
        for name in shards.names
        if name.startswith(_ENCODER)
    }
    words = tensors.pop("model.encoder.embed_tokens.weight", None)
    if words is None:
        raise ModelError(f"{folder} lacks the tensor {_ENCODER}embed_tokens.weight; download the model again")
    save_file({"model.shared.weight": words, **tensors}, target / "model.safetensors", metadata={"format": "pt"})
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
