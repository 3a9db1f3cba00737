"""Child process of `mtllm_edge.backends.probing.llm_backend`: measures the speed of one LLM in GGUF and ONNX.

Run as ``python -m mtllm_edge.backends.probing.llm_backend_child GGUF LLM ONNX LLM THREADS EXTRA_BUFFERS
FLASH_ATTENTION``: each LLM is a part of the manifest as JSON, the switches are 0 or 1. The last line of the output is a
`BackendSpeeds` as JSON.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from mtllm_edge.backends.llms.base import Llm
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.llama_cpp import INPUT_SCALE
from mtllm_edge.backends.probing.llm_backend import BackendSpeeds
from mtllm_edge.bundle.manifest import LlmSpec

_LENGTHS = (26, 28, 30, 32, 34, 36, 38, 32)  # a batch of sentences, 256 inputs
_SECONDS = 2.0
"""Duration of the measurement, after one batch of each backend to warm up."""


def measure_speeds(llms: dict[str, Llm], n_embd: int) -> BackendSpeeds:
    """Pool one batch repeatedly, the backends in turns; return the median speeds."""
    rng = np.random.default_rng(0)
    batch = [rng.normal(0, INPUT_SCALE, (length, n_embd)).astype(np.float32) for length in _LENGTHS]
    seconds: dict[str, list[float]] = {name: [] for name in llms}
    for llm in llms.values():
        llm.pool(batch)
    began = time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        for name, llm in llms.items():
            started = time.perf_counter()
            llm.pool(batch)
            seconds[name].append(time.perf_counter() - started)
    return BackendSpeeds(**{name: sum(_LENGTHS) / statistics.median(times) for name, times in seconds.items()})


def main(arguments: list[str]) -> None:
    """Measure the LLMs of the command line and print the result."""
    from mtllm_edge.backends.llms.llama_cpp import GgufLlm
    from mtllm_edge.backends.llms.onnx import OnnxLlm

    child_process.disable_core_dumps()
    gguf_file, gguf, onnx_file, onnx, threads, extra_buffers, flash_attention = arguments
    settings = EngineSettings(extra_buffers == "1", flash_attention == "1", note="under measurement")
    gguf_spec, onnx_spec = (msgspec.json.decode(spec, type=LlmSpec) for spec in (gguf, onnx))
    llms: dict[str, Llm] = {
        "gguf": GgufLlm(Path(gguf_file), gguf_spec, settings=settings, threads=int(threads)),
        "onnx": OnnxLlm(Path(onnx_file), onnx_spec, threads=int(threads)),
    }
    print(msgspec.json.encode(measure_speeds(llms, gguf_spec.n_embd)).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
