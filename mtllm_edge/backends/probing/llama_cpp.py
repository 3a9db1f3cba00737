"""Probe of llama.cpp in child processes: the fastest settings that work on this machine.

A native crash cannot be caught, and some builds crash on some processors: a default build on a CPU with AMX crashes in
its first quantized matrix product (llama.cpp issues 20824 and 26954). So a child pools random inputs first (see
`mtllm_edge.backends.probing.llama_cpp_child`). If it crashes, hangs or disagrees with the plain kernels, more
conservative settings are tried. The result is cached by processor, build and kind of weights, so that this takes a few
seconds once.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.cpu import read_cpu
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing import cache, child_process
from mtllm_edge.backends.probing.child_process import UNAVAILABLE, ChildStartError, Failure, run_child
from mtllm_edge.bundle.formats import gguf
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.errors import EngineError
from mtllm_edge.extras import version_of

MIN_COSINE = 0.95
"""Minimum agreement of two settings. Rounding leaves 0.999 and more, a wrong kernel about 0."""
PROBE_LENGTHS = (1, 7, 40)
"""Lengths of the random inputs: one row, less than a tile, and several tiles use different kernels."""
PROBE_SEED = 20240618
INPUT_SCALE = 0.05
"""Standard deviation of random LLM inputs, about that of an LLM's own input embeddings."""
_PROBE_VERSION = 1

FAST = (True, True)
NO_EXTRA_BUFFERS = (False, True)
PLAIN = (False, False)
_NAMES = {
    FAST: "the fast settings",
    NO_EXTRA_BUFFERS: "the settings without repacked weights",
    PLAIN: "the plain kernels",
}


class ProbeResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of a child: pooled vectors, or the engine's error in one line."""

    pooled: list[list[float]] | None = None
    error: str | None = None


def engine_settings(path: Path, llm: LlmSpec, *, use_cache: bool = True) -> EngineSettings:
    """Return the fastest settings with which llama.cpp computes a GGUF with a checked header correctly on this machine.

    Without `use_cache`, llama.cpp is tried again. Raises EngineError if no settings work.
    """
    if not child_process.is_available():
        return EngineSettings(*PLAIN, note=f"not tried: {UNAVAILABLE}, so the plain kernels are used")
    key = machine_key(path, llm) | {"probe": str(_PROBE_VERSION)}
    try:
        return cache.get_or_run("engine", key, EngineSettings, lambda: (_probe(path, llm), True), use_cache=use_cache)
    except ChildStartError as error:
        return EngineSettings(*PLAIN, note=f"not tried: {error}, so the plain kernels are used")


def _probe(path: Path, llm: LlmSpec) -> EngineSettings:
    """Try settings from fast to plain; the plain kernels are the reference."""
    reference = pooled_by_child(path, llm, PLAIN)
    if isinstance(reference, Failure) and reference.error is not None:
        raise EngineError(f"{path}: {reference.error}; run `mtllm-edge doctor`")
    failures = []
    for switches in (FAST, NO_EXTRA_BUFFERS):
        pooled = pooled_by_child(path, llm, switches)
        if isinstance(pooled, Failure):
            failures.append(f"{_NAMES[switches]} {pooled.reason}")
        elif isinstance(reference, Failure):
            failures.append(f"{_NAMES[PLAIN]} {reference.reason}")
            return _settings(switches, failures)
        elif (cosine := min_cosine(pooled, reference)) < MIN_COSINE:
            failures.append(f"{_NAMES[switches]} computed wrong numbers (cosine {cosine:.3f} with {_NAMES[PLAIN]})")
        else:
            return _settings(switches, failures)
    if isinstance(reference, Failure):
        failures.append(f"{_NAMES[PLAIN]} {reference.reason}")
        raise EngineError(f"{path}: llama.cpp does not work here ({'; '.join(failures)}); run `mtllm-edge doctor`")
    return _settings(PLAIN, failures)


def _settings(switches: tuple[bool, bool], failures: list[str]) -> EngineSettings:
    return EngineSettings(*switches, note="; ".join([f"tried here: {_NAMES[switches]} work", *failures]))


def pooled_by_child(
    path: Path, llm: LlmSpec, switches: tuple[bool, bool], gpu_layers: int = 0
) -> NDArray[np.float32] | Failure:
    """Return vectors (texts, n_embd) of random inputs from a child, or its failure; ChildStartError as `run_child`."""
    result = run_child(_child_command(path, llm, switches, gpu_layers), ProbeResult)
    if isinstance(result, Failure):
        return result
    if result.pooled is None:
        return Failure(f"failed: {result.error}", error=result.error)
    pooled_NE = np.array(result.pooled, np.float32)
    if pooled_NE.ndim != 2 or not np.isfinite(pooled_NE).all():
        return Failure("gave numbers that are not finite")
    return pooled_NE


def _child_command(path: Path, llm: LlmSpec, switches: tuple[bool, bool], gpu_layers: int) -> list[str]:
    arguments = (*child_process.spec_arguments(path, llm), *map(str, map(int, (*switches, gpu_layers))))
    return child_process.command("mtllm_edge.backends.probing.llama_cpp_child", *arguments)


def min_cosine(one_NE: NDArray[np.float32], other_NE: NDArray[np.float32]) -> float:
    """Return the minimum cosine of corresponding rows; 0 for arrays of different shapes."""
    if one_NE.shape != other_NE.shape:
        return 0.0
    norms_N = np.linalg.norm(one_NE, axis=1) * np.linalg.norm(other_NE, axis=1)
    return float(np.min((one_NE * other_NE).sum(axis=1) / np.maximum(norms_N, 1e-30)))


def machine_key(path: Path, llm: LlmSpec) -> dict[str, str]:
    """Return the cache key of results on a GGUF file: processor, build, and kind of weights."""
    cpu = read_cpu()
    types = gguf.read_header(path).types
    return {
        "cpu": cpu.model,
        "flags": " ".join(cpu.flags),
        "llama.cpp": engine_build(),
        "architecture": f"{llm.architecture} {llm.attention} {llm.n_embd}",
        "weights": f"{llm.quantization} {sorted(set(types.values()))}",
    }


def engine_libraries() -> list[Path]:
    """Return the libraries of the installed llama-cpp-python, sorted, without importing it."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (spec.submodule_search_locations or [])] if spec else []
    return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file())


def engine_build() -> str:
    """Return the version of llama-cpp-python, and a digest of its libraries that changes with a rebuild."""
    files = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in engine_libraries()]
    return f"{version_of('llama-cpp-python')} {hashlib.sha256(' '.join(files).encode()).hexdigest()[:16]}"
