"""Read the float32 arrays of bridges and heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from mtllm_edge.errors import ModelError


def read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read a safetensors file; raises ModelError if it cannot be read or holds numbers that are not finite."""
    try:
        arrays: dict[str, NDArray[np.float32]] = safetensors.numpy.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}); copy or export the bundle again") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ModelError(f"{path}: {name} holds numbers that are not finite; train or export the model again")
    return arrays
