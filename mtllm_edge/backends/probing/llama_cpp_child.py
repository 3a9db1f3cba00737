"""The child of `mtllm_edge.backends.probing.llama_cpp`: pools random inputs with given settings.

Run as ``python -m mtllm_edge.backends.probing.llama_cpp_child FILE LLM EXTRA_BUFFERS FLASH_ATTENTION GPU_LAYERS``,
where LLM is the
manifest's part as JSON and the switches are 0 or 1. The last line of the output is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.llama_cpp import MIN_COSINE, ProbeResult, min_cosine
from mtllm_edge.bundle import manifest
from mtllm_edge.errors import MtllmError
from mtllm_edge.safe_text import one_line

_LENGTHS = (1, 7, 40)  # one row, less than a tile, and several tiles take different kernels
_SCALE = 0.05  # about that of an LLM's own input embeddings
_SEED = 20240618


def probe(path: Path, llm: manifest.LlmSpec, settings: EngineSettings) -> ProbeResult:
    """Pool random inputs, together and one by one, and return the vectors."""
    from mtllm_edge.backends.llms.llama_cpp import GgufLlm

    rng = np.random.default_rng(_SEED)
    batch = [rng.normal(0, _SCALE, (length, llm.n_embd)).astype(np.float32) for length in _LENGTHS]
    body = GgufLlm(path, llm, settings=settings, threads=default_threads())
    together_NE = body.pool(batch)
    singly_NE = np.concatenate([body.pool([inputs_LE]) for inputs_LE in batch])
    body.close()
    if (cosine := min_cosine(together_NE, singly_NE)) < MIN_COSINE:
        return ProbeResult(error=f"batched and single results differ (cosine {cosine:.3f})")
    return ProbeResult(pooled=together_NE.tolist())


def main(arguments: list[str]) -> None:
    """Run the probe as the command line says and print its result."""
    child_process.disable_core_dumps()
    path, described, extra_buffers, flash_attention, gpu_layers = arguments
    llm = msgspec.json.decode(described, type=manifest.LlmSpec)
    settings = EngineSettings(extra_buffers == "1", flash_attention == "1", "under probe", gpu_layers=int(gpu_layers))
    try:
        result = probe(Path(path), llm, settings)
    except (MtllmError, ImportError, OSError) as error:
        result = ProbeResult(error=_reason(error, path))
    print(msgspec.json.encode(result).decode())


def _reason(error: Exception, path: str) -> str:
    """The error without the frame that the parent puts around it again."""
    return one_line(error).removeprefix(f"{path}: ").removesuffix("; see `mtllm-edge doctor`")


if __name__ == "__main__":
    main(sys.argv[1:])
