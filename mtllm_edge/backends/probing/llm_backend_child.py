"""The child of `mtllm_edge.backends.probing.llm_backend`: times one LLM in its two forms.

Run as ``python -m mtllm_edge.backends.probing.llm_backend_child GGUF LLM ONNX LLM THREADS EXTRA_BUFFERS
FLASH_ATTENTION``, where LLM is the
manifest's part as JSON and the switches are 0 or 1. The last line of the output is
`mtllm_edge.backends.probing.llm_backend.BackendSpeeds` as JSON.
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
from mtllm_edge.backends.probing.llm_backend import BackendSpeeds
from mtllm_edge.bundle import manifest

_LENGTHS = (26, 28, 30, 32, 34, 36, 38, 32)  # a batch of sentences, 256 inputs
_SCALE = 0.05  # as in `probe`
_SECONDS = 2.0
"""How long both forms together take turns, after one batch each to warm up."""


def race(contenders: dict[str, Llm], n_embd: int) -> BackendSpeeds:
    """Let both forms read the same batch again and again, in turns; medians."""
    rng = np.random.default_rng(0)
    batch = [rng.normal(0, _SCALE, (length, n_embd)).astype(np.float32) for length in _LENGTHS]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for llm in contenders.values():
        llm.pool(batch)
    began = time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        for name, llm in contenders.items():
            started = time.perf_counter()
            llm.pool(batch)
            seconds[name].append(time.perf_counter() - started)
    return BackendSpeeds(**{name: sum(_LENGTHS) / statistics.median(times) for name, times in seconds.items()})


def main(arguments: list[str]) -> None:
    """Run the race as the command line says and print its result."""
    from mtllm_edge.backends.llms.llama_cpp import GgufLlm
    from mtllm_edge.backends.llms.onnx import OnnxLlm

    child_process.disable_core_dumps()
    gguf_file, gguf, onnx_file, onnx, threads, extra_buffers, flash_attention = arguments
    settings = EngineSettings(extra_buffers == "1", flash_attention == "1", note="in a race")
    gguf_llm, onnx_llm = (msgspec.json.decode(described, type=manifest.LlmSpec) for described in (gguf, onnx))
    contenders: dict[str, Llm] = {
        "gguf": GgufLlm(Path(gguf_file), gguf_llm, settings=settings, threads=int(threads)),
        "onnx": OnnxLlm(Path(onnx_file), onnx_llm, threads=int(threads)),
    }
    print(msgspec.json.encode(race(contenders, gguf_llm.n_embd)).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
