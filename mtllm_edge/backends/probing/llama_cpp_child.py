"""Child process of `mtllm_edge.backends.probing.llama_cpp`: pools random inputs with given settings.

Run as ``python -m mtllm_edge.backends.probing.llama_cpp_child FILE LLM EXTRA_BUFFERS FLASH_ATTENTION GPU_LAYERS``: LLM
is its part of the manifest as JSON, the switches are 0 or 1. The last line of the output is a `ProbeResult` as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.llama_cpp import (
    INPUT_SCALE,
    MIN_COSINE,
    PROBE_LENGTHS,
    PROBE_SEED,
    ProbeResult,
    min_cosine,
)
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.errors import MtllmError


def probe(path: Path, llm: LlmSpec, settings: EngineSettings) -> ProbeResult:
    """Pool random inputs in one batch and one by one, and compare the vectors."""
    from mtllm_edge.backends.llms.llama_cpp import GgufLlm

    rng = np.random.default_rng(PROBE_SEED)
    batch = [rng.normal(0, INPUT_SCALE, (length, llm.n_embd)).astype(np.float32) for length in PROBE_LENGTHS]
    engine = GgufLlm(path, llm, settings=settings, threads=default_threads())
    batched_NE = engine.pool(batch)
    single_NE = np.concatenate([engine.pool([inputs_LE]) for inputs_LE in batch])
    engine.close()
    if (cosine := min_cosine(batched_NE, single_NE)) < MIN_COSINE:
        return ProbeResult(error=f"batched and single results differ (cosine {cosine:.3f})")
    return ProbeResult(pooled=batched_NE.tolist())


def main(arguments: list[str]) -> None:
    """Run the probe with the arguments of the command line and print its result."""
    child_process.disable_core_dumps()
    path, llm, extra_buffers, flash_attention, gpu_layers = arguments
    settings = EngineSettings(extra_buffers == "1", flash_attention == "1", "under probe", gpu_layers=int(gpu_layers))
    try:
        result = probe(Path(path), msgspec.json.decode(llm, type=LlmSpec), settings)
    except (MtllmError, ImportError, OSError) as error:
        result = ProbeResult(error=child_process.engine_error(error, path))
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
