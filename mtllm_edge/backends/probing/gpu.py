"""Placement of a bundle's encoder and LLM on a GPU, after a trial in child processes.

Drivers can crash a process or compute wrong numbers, as CPU kernels can. So a child computes random inputs on the GPU
(`mtllm_edge.backends.probing.llama_cpp_child`, `mtllm_edge.backends.probing.gpu_child`), and its vectors are compared
with the CPU's. Results are cached by GPU, build and model; a refusal, such as a lack of memory, may be temporary and is
not cached. Whatever fails on the GPU runs on the CPU, with a `GpuWarning`.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing import cache, child_process
from mtllm_edge.backends.probing.child_process import ChildStartError, Failure, run_child
from mtllm_edge.backends.probing.llama_cpp import (
    MIN_COSINE,
    PLAIN,
    engine_libraries,
    engine_settings,
    machine_key,
    min_cosine,
    pooled_by_child,
)
from mtllm_edge.bundle.manifest import EncoderSpec, LlmBackend, LlmSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import UsageError

GpuLayers = int | Literal["all"]
Device = Literal["cpu", "cuda"]
"""Device of CTranslate2."""
_ADVICE = "; see `mtllm-edge doctor`"
_CHILD = "mtllm_edge.backends.probing.gpu_child"
_TRIAL_VERSION = "2"
_GPU_LIBRARY = re.compile(r"(?:lib)?ggml-(cuda|metal|vulkan|hip|sycl|opencl|musa|cann)\b")


class GpuWarning(UserWarning):
    """A part of the bundle that was to run on a GPU runs on the CPU."""


@dataclass(frozen=True)
class Offload:
    """Placement of a bundle on a GPU."""

    encoder: Device = "cpu"
    llm: EngineSettings | None = None
    """Settings of a GGUF LLM with layers on the GPU; None if the whole LLM runs on the CPU."""
    faults: tuple[tuple[str, str], ...] = ()
    """Parts that run on the CPU against the request, each with the reason."""

    @property
    def is_none(self) -> bool:
        """Whether everything runs on the CPU."""
        return self.encoder == "cpu" and self.llm is None

    @property
    def shortfall(self) -> str:
        """One line on the parts in `faults`; empty if there are none."""
        if self.faults and self.is_none:
            return "everything runs on the CPU: " + "; ".join(fault for _, fault in self.faults)
        return "; ".join(f"the {part} runs on the CPU: {fault}" for part, fault in self.faults)

    def warn(self) -> None:
        """Warn of `shortfall`, at the caller's caller."""
        if self.faults:
            warnings.warn(f"{self.shortfall.removesuffix(_ADVICE)}{_ADVICE}", GpuWarning, stacklevel=3)


ON_CPU = Offload()


class GpuInventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """GPUs that the engines can use; none for an engine that cannot be imported."""

    llama: tuple[str, ...] = ()
    """Names of llama.cpp's GPUs."""
    ctranslate2: str = ""
    """Version of CTranslate2."""
    cuda: int = 0
    """Number of CTranslate2's CUDA devices."""
    compute_types: tuple[str, ...] = ()
    """CTranslate2's compute types on these devices."""
    fault: str | None = None
    """Why the GPUs are unknown."""


class EncoderTrial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of a child that ran an encoder on CUDA."""

    cosine: float = 0.0
    """Minimum cosine of a text's mean state with that of the CPU in float32."""
    error: str | None = None
    """CTranslate2's error in one line."""


class _Trial(msgspec.Struct, frozen=True):
    """Cached result of a trial on the GPU."""

    fault: str | None = None
    """Why the GPU cannot be used."""
    switches: tuple[bool, bool] = PLAIN
    """`EngineSettings.switches` that work on the GPU; of an LLM only."""


def check_gpu_layers(gpu_layers: object) -> GpuLayers:
    """Return a number of GPU layers, or "all"; raises UsageError for anything else."""
    if gpu_layers == "all":
        return "all"
    if isinstance(gpu_layers, int) and not isinstance(gpu_layers, bool) and gpu_layers >= 0:
        return gpu_layers
    raise UsageError(f"the number of layers on the GPU is {gpu_layers!r}, expected 0 or more, or 'all'")


def gpu_backends() -> list[str]:
    """Return the GPU backends of this build of llama.cpp by its libraries: ``CUDA``, ``Metal``, ``Vulkan`` ..."""
    matches = [_GPU_LIBRARY.match(path.name) for path in engine_libraries()]
    names = {match.group(1) for match in matches if match}
    return sorted(name.capitalize() if name in ("metal", "vulkan") else name.upper() for name in names)


def detect_gpus() -> GpuInventory:
    """List the engines' GPUs in a child process; never raises."""
    if not child_process.is_available():
        return GpuInventory(fault="a GPU cannot be tried, since there is no Python to start")
    try:
        gpus = run_child(child_process.command(_CHILD, "detect"), GpuInventory)
    except ChildStartError as error:
        return GpuInventory(fault=f"a GPU cannot be tried, since {error}")
    return GpuInventory(fault=f"the search for GPUs {gpus.reason}") if isinstance(gpus, Failure) else gpus


def plan_offload(
    bundle: Bundle, gpu_layers: GpuLayers, llm_backend: LlmBackend | None = None, *, use_cache: bool = True
) -> Offload:
    """Decide which parts of a bundle run on a GPU; only GGUF can, and 0 layers mean no search for GPUs.

    Without `use_cache`, the GPU is tried again.

    Raises:
        EngineError: llama.cpp cannot run the LLM on the CPU either.
    """
    if gpu_layers == 0:
        return ON_CPU
    gpus = detect_gpus()
    if gpus.fault is not None:
        return Offload(faults=(("LLM", gpus.fault),))
    encoder, llm = bundle.manifest.encoder, bundle.manifest.llm
    fault = _encoder_fault(bundle.path / encoder.path, encoder, gpus, use_cache=use_cache)
    settings: EngineSettings | str = "an LLM in ONNX has no GPU"
    if llm.backend == "gguf" and llm_backend != "onnx":
        layers = llm.n_layer + 1 if gpu_layers == "all" else min(gpu_layers, llm.n_layer + 1)  # one more: its last norm
        settings = _llm_settings(bundle.path / llm.file, llm, layers, gpus, use_cache=use_cache)
    faults = [("LLM", settings)] if isinstance(settings, str) else []
    if fault is not None and gpus.cuda:  # without CUDA, nobody expects the encoder on a GPU
        faults.append(("encoder", fault))
    return Offload("cuda" if fault is None else "cpu", None if isinstance(settings, str) else settings, tuple(faults))


def _llm_settings(
    path: Path, llm: LlmSpec, layers: int, gpus: GpuInventory, *, use_cache: bool
) -> EngineSettings | str:
    """Return the settings of a GGUF LLM with `layers` layers on the GPU, or why that does not work."""
    if not gpus.llama:
        backends = ", ".join(gpu_backends())
        if not backends:
            return "this build of llama-cpp-python is for the CPU alone"
        return f"llama.cpp sees no GPU here (this build is for {backends})"
    cpu = engine_settings(path, llm)
    key = machine_key(path, llm) | {
        "trial": f"{_TRIAL_VERSION} {cpu.switches}",
        "gpus": ", ".join(gpus.llama),
        "layers": f"{layers} of {llm.n_layer}",
    }
    trial = cache.get_or_run("gpu-llm", key, _Trial, lambda: _try_llm(path, llm, cpu, layers), use_cache=use_cache)
    if trial.fault is not None:
        return f"{gpus.llama[0]} {trial.fault}"
    return EngineSettings(*trial.switches, f"tried here: {layers} layers on {gpus.llama[0]} work", gpu_layers=layers)


def _try_llm(path: Path, llm: LlmSpec, cpu: EngineSettings, layers: int) -> tuple[_Trial, bool]:
    """Try an LLM on the GPU; return the result, and whether it is to be cached."""
    faults = []
    try:
        reference = pooled_by_child(path, llm, cpu.switches)
        if isinstance(reference, Failure):
            return _Trial(f"was not tried: on the CPU, the child process {reference.reason}"), False
        for switches in dict.fromkeys((cpu.switches, PLAIN)):
            pooled = pooled_by_child(path, llm, switches, layers)
            if isinstance(pooled, Failure):
                faults.append(pooled.reason)
                if pooled.error is not None:
                    return _Trial(pooled.reason), False
            elif (cosine := min_cosine(pooled, reference)) < MIN_COSINE:
                faults.append(f"computed wrong numbers (cosine {cosine:.3f} with the CPU)")
            else:
                return _Trial(switches=switches), True
    except ChildStartError as error:
        return _Trial(f"was not tried: {error}"), False
    return _Trial(faults[0]), True


def _encoder_fault(path: Path, encoder: EncoderSpec, gpus: GpuInventory, *, use_cache: bool) -> str | None:
    """Return why an encoder cannot run on CUDA; None if it can."""
    if encoder.backend != "ctranslate2":
        return "an encoder in ONNX has no GPU"
    if not gpus.cuda:
        return "CTranslate2 sees no CUDA device"
    key = {
        "trial": _TRIAL_VERSION,
        "ctranslate2": gpus.ctranslate2,
        "gpus": f"{gpus.cuda} {', '.join(gpus.compute_types)}; {', '.join(gpus.llama)}",
        "encoder": f"{encoder.family} {encoder.quantization} {encoder.d_model}",
    }
    trial = cache.get_or_run("gpu-encoder", key, _Trial, lambda: _try_encoder(path, encoder), use_cache=use_cache)
    return None if trial.fault is None else f"CTranslate2 on CUDA {trial.fault}"


def _try_encoder(folder: Path, encoder: EncoderSpec) -> tuple[_Trial, bool]:
    """Try an encoder on CUDA; return the result, and whether it is to be cached."""
    command = child_process.command(_CHILD, "encode", *child_process.spec_arguments(folder, encoder))
    try:
        result = run_child(command, EncoderTrial)
    except ChildStartError as error:
        return _Trial(f"was not tried: {error}"), False
    if isinstance(result, Failure):
        return _Trial(result.reason), True
    if result.error is not None:
        return _Trial(f"failed: {result.error}"), False
    if result.cosine < MIN_COSINE:
        return _Trial(f"computed wrong numbers (cosine {result.cosine:.3f} with the CPU)"), True
    return _Trial(), True
