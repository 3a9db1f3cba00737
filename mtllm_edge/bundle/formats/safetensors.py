"""Header of a safetensors file (https://github.com/huggingface/safetensors#format), float32 tensors only."""

from __future__ import annotations

from pathlib import Path

import safetensors

from mtllm_edge.bundle.formats.binary import DamagedFileError


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor; raises DamagedFileError for other types than float32, and invalid headers.

    The library, in Rust, validates the header and the tensors' offsets.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            types = {name: tensor.get_dtype() for name, tensor in tensors.items()}
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DamagedFileError(f"no safetensors file ({error})") from None
    for name, kind in types.items():
        if kind != "F32":
            raise DamagedFileError(f"tensor {name} has type {kind}, expected F32")
    return shapes
