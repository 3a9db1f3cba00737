"""The GPUs that llama.cpp can use here. A driver may end the process that asks, so only child processes do."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from mtllm_edge.backends.cpu import configure_openmp

configure_openmp()
import llama_cpp  # noqa: E402 (its OpenMP reads the environment when it is loaded)

_GPU_TYPES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU as ggml-backend.h counts


def gpus() -> tuple[str, ...]:
    """Names of the GPUs, as ``CUDA0 (NVIDIA T4)``; none where there are none, or llama.cpp was built without."""
    if not llama_cpp.llama_supports_gpu_offload():
        return ()
    return tuple(name for kind, name in devices() if kind in _GPU_TYPES) or ("a GPU without a name",)


def devices() -> Iterator[tuple[int, str]]:
    """Type and name of what ggml computes with, CPUs included; none where its library does not tell, as on Windows."""
    try:
        from llama_cpp._ggml import libggml  # the binding itself has no functions for it

        count, get = libggml.ggml_backend_dev_count, libggml.ggml_backend_dev_get
        kind, name = libggml.ggml_backend_dev_type, libggml.ggml_backend_dev_name
        description = libggml.ggml_backend_dev_description
    except (ImportError, AttributeError, OSError):
        return
    count.restype, get.argtypes, get.restype = ctypes.c_size_t, [ctypes.c_size_t], ctypes.c_void_p
    for function, result in ((kind, ctypes.c_int), (name, ctypes.c_char_p), (description, ctypes.c_char_p)):
        function.argtypes, function.restype = [ctypes.c_void_p], result
    for device in map(get, range(count())):
        yield kind(device), f"{_text(name(device))} ({_text(description(device))})"


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", errors="replace")
