"""What llama.cpp may be trusted with on this machine, found out in a child process.

A native crash cannot be caught, and some builds crash on some processors: a default build on a CPU with AMX dies in
its first quantised matrix product (llama.cpp issues 20824 and 26954). So before the LLM is loaded into the user's
process, a child loads it and pools a few random inputs (`llms.probe`). If the child dies, hangs, or computes something
else than the plain kernels do, more careful settings are tried. The answer is kept in a cache, by processor, build and
kind of weights, so this costs a few seconds once.
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
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.formats import gguf
from mtllm_edge.errors import EngineError
from mtllm_edge.extras import version_of

MIN_COSINE = 0.95
"""Least agreement of two settings. Rounding leaves 0.999 and more, a wrong kernel about 0."""
_PROBE_VERSION = 1


class ProbeResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a child reports: the pooled vectors, or the engine's one-line refusal."""

    pooled: list[list[float]] | None = None
    error: str | None = None


FAST = (True, True)
NO_EXTRA_BUFFERS = (False, True)
PLAIN = (False, False)
_NAMES = {
    FAST: "the fast settings",
    NO_EXTRA_BUFFERS: "the settings without repacked weights",
    PLAIN: "the plain kernels",
}


def engine_settings(path: Path, llm: manifest.LlmSpec, *, use_cache: bool = True) -> EngineSettings:
    """The fastest settings with which this machine computes this LLM, and computes it right.

    Args:
        path: The GGUF file, whose header has been checked.
        llm: The manifest's word on it.
        use_cache: Whether a cached result is used; otherwise llama.cpp is tried again.

    Raises:
        EngineError: No settings work.
    """
    if not child_process.is_available():
        return EngineSettings(*PLAIN, note=f"not tried: {UNAVAILABLE}, so the plain kernels are used")
    key = machine_key(path, llm) | {"probe": str(_PROBE_VERSION)}
    known = cache.get("engine", key, EngineSettings) if use_cache else None
    if known is not None:
        return known
    try:
        settings = _probe_all(path, llm)
    except ChildStartError as error:
        return EngineSettings(*PLAIN, note=f"not tried: {error}, so the plain kernels are used")
    cache.put("engine", key, settings)
    return settings


def _probe_all(path: Path, llm: manifest.LlmSpec) -> EngineSettings:
    """Try the settings from fast to plain; the plain kernels are the reference for the others' numbers."""
    reference = pooled_by_child(path, llm, PLAIN)
    if isinstance(reference, Failure) and reference.error is not None:
        raise EngineError(f"{path}: {reference.error}; run `mtllm-edge doctor`")
    failures = []
    for switches in (FAST, NO_EXTRA_BUFFERS):
        outcome = pooled_by_child(path, llm, switches)
        if isinstance(outcome, Failure):
            failures.append(f"{_NAMES[switches]} {outcome.reason}")
        elif isinstance(reference, Failure):
            failures.append(f"{_NAMES[PLAIN]} {reference.reason}")
            return _settings(switches, failures)
        elif (cosine := min_cosine(outcome, reference)) < MIN_COSINE:
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
    path: Path, llm: manifest.LlmSpec, switches: tuple[bool, bool], gpu_layers: int = 0
) -> NDArray[np.float32] | Failure:
    """Pooled vectors (texts, n_embd) of random inputs, or what became of the child that was to compute them.

    Raises:
        ChildStartError: None could be started.
    """
    result = run_child(_child_command(path, llm, switches, gpu_layers), ProbeResult)
    if isinstance(result, Failure):
        return result
    if result.pooled is None:
        return Failure(f"failed: {result.error}", error=result.error)
    pooled_NE = np.array(result.pooled, np.float32)
    if pooled_NE.ndim != 2 or not np.isfinite(pooled_NE).all():
        return Failure("gave numbers that are not finite")
    return pooled_NE


def _child_command(path: Path, llm: manifest.LlmSpec, switches: tuple[bool, bool], gpu_layers: int) -> list[str]:
    arguments = (*child_process.llm_arguments(path, llm), *map(str, map(int, (*switches, gpu_layers))))
    return child_process.command("mtllm_edge.backends.probing.llama_cpp_child", *arguments)


def min_cosine(one_NE: NDArray[np.float32], other_NE: NDArray[np.float32]) -> float:
    """Cosine of the row in which two arrays of vectors agree least; 0 where their shapes differ."""
    if one_NE.shape != other_NE.shape:
        return 0.0
    norms_N = np.linalg.norm(one_NE, axis=1) * np.linalg.norm(other_NE, axis=1)
    return float(np.min((one_NE * other_NE).sum(axis=1) / np.maximum(norms_N, 1e-30)))


def machine_key(path: Path, llm: manifest.LlmSpec) -> dict[str, str]:
    """What answers about a GGUF file depend on: processor, build, and kind of weights."""
    cpu = read_cpu()
    types = gguf.read_header(path).types
    return {
        "cpu": cpu.model,
        "flags": " ".join(cpu.flags),
        "llama.cpp": engine_build(),
        "architecture": f"{llm.architecture} {llm.attention} {llm.n_embd}",
        "weights": f"{llm.quantization} {sorted(set(types.values()))}",
    }


def engine_build() -> str:
    """Version of llama-cpp-python, and size and time of its libraries: a rebuild changes it."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (spec.submodule_search_locations or [])] if spec else []
    libraries = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file())
    described = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in libraries]
    return f"{version_of('llama-cpp-python')} {hashlib.sha256(' '.join(described).encode()).hexdigest()[:16]}"
