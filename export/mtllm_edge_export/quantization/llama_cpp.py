"""Quantize a GGUF file with llama.cpp."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import EngineError

Array = NDArray[np.float32]

_FILE_TYPES = {
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
    "iq4_nl": "LLAMA_FTYPE_MOSTLY_IQ4_NL",
}

QuantizedType = Literal["q8_0", "q4_0", "q4_k_m", "iq4_nl"]


def quantize_gguf(
    source: Path, target: Path, quantization: QuantizedType, importance: Mapping[str, Array] = MappingProxyType({})
) -> None:
    """Quantize the matrices of a float32 GGUF file; those of unsuitable width get a similar type.

    `importance` maps GGUF's name of a matrix to the weight of each of its inputs, (in,).

    Raises:
        EngineError: llama.cpp cannot be imported, or fails.
    """
    try:
        # The runtime's module comes first: it configures OpenMP, and collects llama.cpp's log for error messages.
        from mtllm_edge.backends.llms import llama_cpp as engine  # noqa: I001

        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"llama.cpp cannot be imported ({error}); run `mtllm-edge doctor`") from None
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, _FILE_TYPES[quantization])
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()  # an empty entry ends the list
    arrays = [np.ascontiguousarray(weights_I, np.float32) for weights_I in importance.values()]
    for entry, name, weights_I in zip(entries, importance, arrays, strict=False):
        entry.name, entry.size = name.encode(), len(weights_I)
        entry.data = weights_I.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance:
        parameters.imatrix = entries
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if code != 0:
        reason = f"code {code}{engine.last_error()}"
        raise EngineError(f"llama.cpp cannot quantize {source} to {quantization}, {reason}; choose another type")
