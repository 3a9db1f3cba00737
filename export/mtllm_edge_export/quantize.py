"""llama.cpp's own quantiser: the one call into it besides the runtime's engine module."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Literal

from mtllm_edge.errors import EngineError

_FILE_TYPES = {
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
    "iq4_nl": "LLAMA_FTYPE_MOSTLY_IQ4_NL",
}


Quantised = Literal["q8_0", "q4_0", "q4_k_m", "iq4_nl"]


def quantize_gguf(source: Path, target: Path, quantization: Quantised) -> None:
    """Quantise the matrices of a GGUF file.

    Args:
        source: A float32 GGUF file.
        target: The file to write.
        quantization: Type that llama.cpp aims at; matrices whose width does not allow it get a neighbouring one.

    Raises:
        EngineError: llama.cpp cannot be imported, or refuses.
    """
    try:
        # The runtime's module comes first: it calms OpenMP, and keeps llama.cpp's log for messages.
        from mtllm_edge.llms import gguf as engine  # noqa: I001

        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"llama.cpp cannot be imported ({error}); run `mtllm-edge doctor`") from None
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, _FILE_TYPES[quantization])
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if code != 0:
        reason = f"code {code}{engine._quoted()}"
        raise EngineError(f"llama.cpp could not quantise {source} to {quantization}, {reason}; try another type")
