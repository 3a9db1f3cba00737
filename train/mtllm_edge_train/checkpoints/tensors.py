"""The weights of a checkpoint as numpy arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mtllm_edge.errors import ModelError
from mtllm_edge_train.checkpoints.config import BRIDGE_NAME, LORA_NAME, TENSORS_NAME

Array = NDArray[np.float32]


def read_tensors(path: Path) -> dict[str, Array]:
    """Read all tensors of a safetensors file as float32.

    Raises:
        ModelError: The file is missing or damaged.
    """
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; the checkpoint is incomplete, train or download it again") from None
    except SafetensorError as error:
        raise ModelError(f"{path} is not readable ({error}); train or download the checkpoint again") from None
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def read_bridge(folder: Path) -> tuple[Array, Array]:
    """Read the bridge: weight (d_llm, stride * d_encoder) and bias (d_llm)."""
    tensors = read_tensors(folder / BRIDGE_NAME)
    return _named(tensors, "weight", folder / BRIDGE_NAME), _named(tensors, "bias", folder / BRIDGE_NAME)


def read_lora(folder: Path) -> dict[str, Array]:
    """Read the tensors of the adapter by name; empty for a checkpoint without an adapter."""
    path = folder / LORA_NAME
    return read_tensors(path) if path.exists() else {}


def head_path(folder: Path, task: str) -> Path:
    """Return the path of a task's head in a checkpoint."""
    return folder / "tasks" / f"{task}.safetensors"


def read_head(folder: Path, task: str) -> tuple[Array, Array | None]:
    """Read a task's head: weight (rows, d_llm), and bias (rows) or None."""
    path = head_path(folder, task)
    tensors = read_tensors(path)
    return _named(tensors, "weight", path), tensors.get("bias")


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the trained weights of a checkpoint."""
    sha256 = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        if path.name != TENSORS_NAME:
            sha256.update(path.read_bytes())
    return sha256.hexdigest()


def _named(tensors: dict[str, Array], name: str, path: Path) -> Array:
    if name not in tensors:
        raise ModelError(f"{path} lacks the tensor {name!r}, found {sorted(tensors)}; train the checkpoint again")
    return tensors[name]
