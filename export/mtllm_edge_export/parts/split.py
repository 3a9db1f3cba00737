"""Split the LLM off a bundle. Requires no torch.

`llm.json`, a recipe, and `lora.safetensors` replace `llm.gguf`, and the word embeddings may be split off, too (see
`embedding_table`); all other files are those of the bundle. `bundle.json` keeps the measurements of the whole bundle,
which `join` restores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mtllm_edge.bundle.manifest import MANIFEST_NAME, GgufQuantization, Manifest
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.errors import ModelError
from mtllm_edge_export.llms.source import source_digest
from mtllm_edge_train.checkpoints.config import LORA_NAME, StackConfig, resolve_source

RECIPE_NAME = "llm.json"
Array = NDArray[np.float32]


class LlmRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of `llm.json`: how to make `llm.gguf`."""

    source: str
    """``python:package/file.gguf``, hub id or path."""
    source_sha256: str | None
    """SHA-256 of the source if it is one file: an adapter fits only the weights it was trained on."""
    layers: int | None
    """Number of layers, from the first; None is all."""
    attention: Literal["causal", "bidirectional"]
    quantization: GgufQuantization
    lora_scale: float
    """Factor on ``lora_B @ lora_A``."""

    @classmethod
    def load(cls, folder: Path) -> LlmRecipe:
        """Load `llm.json` from a folder of parts.

        Raises:
            ModelError: The file is missing or malformed.
        """
        path = folder / RECIPE_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise ModelError(f"{folder} contains no {RECIPE_NAME}; name a folder of export --without-llm") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: {error}; export the parts again") from None


def round_to_float16(lora: Mapping[str, Array]) -> dict[str, Array]:
    """Round an adapter to float16, its type in parts; the result is float32."""
    return {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in lora.items()}


def split_llm(
    folder: Path,
    manifest: Manifest,
    config: StackConfig,
    lora: Mapping[str, Array],
    checkpoint: Path,
    quantization: GgufQuantization,
) -> Manifest:
    """Convert a complete bundle folder to parts, in place, and return their manifest.

    The adapter is that of the bundle's LLM, rounded to float16. The checkpoint is the base of relative sources.
    """
    source = config.llm.source
    if (checkpoint / source).exists():
        source = resolve_source(source, checkpoint)  # the parts do not contain the checkpoint
    recipe = LlmRecipe(
        source=source,
        source_sha256=source_digest(source, checkpoint),
        layers=config.llm.layers,
        attention=config.llm.attention,
        quantization=quantization,
        lora_scale=config.lora.scale if config.lora is not None else 0.0,
    )
    (folder / manifest.llm.file).unlink()
    (folder / RECIPE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(recipe), indent=2) + b"\n")
    if lora:
        save_file({name: tensor.astype(np.float16) for name, tensor in lora.items()}, folder / LORA_NAME)
    manifest = msgspec.structs.replace(manifest, files=list_files(folder))
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest
