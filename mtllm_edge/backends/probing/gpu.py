"""Encoder and LLM tried on a GPU, in child processes, before anything is loaded into the user's process.

Drivers can end a process or compute nonsense as CPU kernels can, so a child
(`mtllm_edge.backends.probing.llama_cpp_child`,
`mtllm_edge.backends.probing.gpu_child`) computes with random inputs, and the numbers are compared with the CPU's.
What is learned is
kept by GPU, build and model; a mere refusal, as for want of memory, is not: it may be over the next time.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import msgspec

from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing import cache, child_process
from mtllm_edge.backends.probing.child_process import ChildStartError, Failure, run_child
from mtllm_edge.backends.probing.llama_cpp import (
    MIN_COSINE,
    PLAIN,
    engine_settings,
    machine_key,
    min_cosine,
    pooled_by_child,
)
from mtllm_edge.bundle.manifest import EncoderSpec, LlmSpec

_CHILD = "mtllm_edge.backends.probing.gpu_child"
_TRIAL_VERSION = "1"
_LIBRARY = re.compile(r"(?:lib)?ggml-(cuda|metal|vulkan|hip|sycl|opencl|musa|cann)\b")


class GpuInventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the engines see of GPUs; an engine that cannot be imported sees none."""

    llama: tuple[str, ...] = ()
    """Names of those that llama.cpp can use."""
    ctranslate2: str = ""
    """Version of CTranslate2."""
    cuda: int = 0
    """CUDA devices that CTranslate2 can use."""
    compute_types: tuple[str, ...] = ()
    """What CTranslate2 computes with on them."""
    fault: str | None = None
    """Why nothing is known."""


class EncoderTrial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child reports of an encoder on CUDA."""

    cosine: float = 0.0
    """Least agreement of a text's states with those of the CPU, in float32."""
    error: str | None = None
    """CTranslate2's one-line refusal."""


class _LlmAnswer(msgspec.Struct, frozen=True):
    """Kept: the switches with which the GPU computes right, or why it does not."""

    switches: tuple[bool, bool] | None
    fault: str = ""


class _EncoderAnswer(msgspec.Struct, frozen=True):
    """Kept: why CUDA does not compute right; None where it does."""

    fault: str | None


def detect_gpus() -> GpuInventory:
    """Ask the engines in a child process what they see; never raises."""
    if not child_process.is_available():
        return GpuInventory(fault="a GPU cannot be tried, since there is no Python to start")
    try:
        seen = run_child(child_process.command(_CHILD, "detect_gpus"), GpuInventory)
    except ChildStartError as error:
        return GpuInventory(fault=f"a GPU cannot be tried, since {error}")
    return GpuInventory(fault=f"looking for a GPU {seen.reason}") if isinstance(seen, Failure) else seen


def gpu_backends() -> list[str]:
    """What this build of llama.cpp could use, by the names of its libraries: ``CUDA``, ``Metal``, ``Vulkan`` ..."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (spec.submodule_search_locations or [])] if spec else []
    names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
    found = {match.group(1) for match in map(_LIBRARY.match, names) if match}
    return sorted(name.capitalize() if name in ("metal", "vulkan") else name.upper() for name in found)


def llm_gpu_settings(
    path: Path, llm: LlmSpec, layers: int, seen: GpuInventory, *, use_cache: bool
) -> EngineSettings | str:
    """The settings with which an LLM in GGUF runs with so many layers on the GPU, or why it does not.

    Args:
        path: The file, whose header has been checked.
        llm: The manifest's word on it.
        layers: Up to one more than it has.
        seen: The GPUs.
        use_cache: Whether a cached result is used; otherwise the GPU is tried again.

    Raises:
        EngineError: llama.cpp cannot run it on the CPU either.
    """
    if not seen.llama:
        built = ", ".join(gpu_backends())
        only = "this build of llama-cpp-python is for the CPU alone"
        return f"llama.cpp sees no GPU here (this build is for {built})" if built else only
    cpu = engine_settings(path, llm)
    key = machine_key(path, llm) | {
        "trial": f"{_TRIAL_VERSION} {cpu.switches}",
        "gpus": ", ".join(seen.llama),
        "layers": f"{layers} of {llm.n_layer}",
    }
    answer = cache.get("gpu-llm", key, _LlmAnswer) if use_cache else None
    if answer is None:
        try:
            answer, lasting = _try_llm(path, llm, cpu, layers)
        except ChildStartError as error:
            answer, lasting = _LlmAnswer(None, f"was not tried: {error}"), False
        if lasting:
            cache.put("gpu-llm", key, answer)
    if answer.switches is None:
        return f"{seen.llama[0]} {answer.fault}"
    return EngineSettings(*answer.switches, f"tried here: {layers} layers on {seen.llama[0]} work", gpu_layers=layers)


def _try_llm(path: Path, llm: LlmSpec, cpu: EngineSettings, layers: int) -> tuple[_LlmAnswer, bool]:
    """The answer about an LLM on the GPU, and whether it will be the same the next time."""
    reference = pooled_by_child(path, llm, cpu.switches)
    if isinstance(reference, Failure):
        return _LlmAnswer(None, f"was not tried: on the CPU, the child process {reference.reason}"), False
    faults = []
    for switches in dict.fromkeys((cpu.switches, PLAIN)):
        outcome = pooled_by_child(path, llm, switches, layers)
        if isinstance(outcome, Failure):
            faults.append(outcome.reason)
            if outcome.error is not None:
                return _LlmAnswer(None, outcome.reason), False
        elif (cosine := min_cosine(outcome, reference)) < MIN_COSINE:
            faults.append(f"computed wrong numbers (cosine {cosine:.3f} with the CPU)")
        else:
            return _LlmAnswer(switches), True
    return _LlmAnswer(None, faults[0]), True


def encoder_gpu_fault(path: Path, encoder: EncoderSpec, seen: GpuInventory, *, use_cache: bool) -> str | None:
    """Why an encoder runs on the CPU; None where it runs on CUDA. Arguments as for `llm_gpu_settings`."""
    if encoder.backend != "ctranslate2":
        return "an encoder in ONNX has no GPU"
    if not seen.cuda:
        return "CTranslate2 sees no CUDA device"
    key = {
        "trial": _TRIAL_VERSION,
        "ctranslate2": seen.ctranslate2,
        "gpus": f"{seen.cuda} {', '.join(seen.compute_types)}; {', '.join(seen.llama)}",
        "encoder": f"{encoder.family} {encoder.quantization} {encoder.d_model}",
    }
    answer = cache.get("gpu-encoder", key, _EncoderAnswer) if use_cache else None
    if answer is None:
        fault, lasting = _try_encoder(path, encoder)
        answer = _EncoderAnswer(fault)
        if lasting:
            cache.put("gpu-encoder", key, answer)
    return None if answer.fault is None else f"CTranslate2 on CUDA {answer.fault}"


def _try_encoder(folder: Path, encoder: EncoderSpec) -> tuple[str | None, bool]:
    """What is wrong with an encoder on CUDA, and whether it will be the same the next time."""
    described = msgspec.json.encode(encoder).decode()
    try:
        trial = run_child(child_process.command(_CHILD, "encode", str(folder.resolve()), described), EncoderTrial)
    except ChildStartError as error:
        return f"was not tried: {error}", False
    if isinstance(trial, Failure):
        return trial.reason, True
    if trial.error is not None:
        return f"failed: {trial.error}", False
    if trial.cosine < MIN_COSINE:
        return f"computed wrong numbers (cosine {trial.cosine:.3f} with the CPU)", True
    return None, True
