"""What of a bundle runs on a GPU, where the caller asks for one.

llama.cpp puts layers of the LLM there, if it was built for that, and CTranslate2 the encoder, on CUDA alone. What does
not work there (see `mtllm_edge.backends.probing.gpu`) runs on the CPU, and the caller is told.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing.gpu import detect_gpus, encoder_gpu_fault, llm_gpu_settings
from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import UsageError

GpuLayers = int | Literal["all"]
Device = Literal["cpu", "cuda"]
"""Where CTranslate2 computes."""
_ADVICE = "; see `mtllm-edge doctor`"


class GpuWarning(UserWarning):
    """What was to run on a GPU runs on the CPU."""


@dataclass(frozen=True)
class Offload:
    """What of a bundle runs on a GPU."""

    encoder: Device = "cpu"
    llm: EngineSettings | None = None
    """Settings of an LLM in GGUF with layers on the GPU; None leaves all of the LLM on the CPU."""
    faults: tuple[tuple[str, str], ...] = ()
    """What was to run there and does not, and why."""

    @property
    def is_none(self) -> bool:
        """Whether everything runs on the CPU."""
        return self.encoder == "cpu" and self.llm is None

    @property
    def shortfall(self) -> str:
        """What runs on the CPU against the caller's wish, in one line; empty where nothing does."""
        if self.faults and self.is_none:
            return "everything runs on the CPU: " + "; ".join(fault for _, fault in self.faults)
        return "; ".join(f"the {part} runs on the CPU: {fault}" for part, fault in self.faults)

    def warn(self) -> None:
        """Warn the caller's caller of `shortfall`."""
        if self.faults:
            warnings.warn(f"{self.shortfall.removesuffix(_ADVICE)}{_ADVICE}", GpuWarning, stacklevel=3)


ON_CPU = Offload()


def check_gpu_layers(gpu_layers: object) -> GpuLayers:
    """A number of layers, or "all" of them.

    Raises:
        UsageError: It is neither.
    """
    if gpu_layers == "all":
        return "all"
    if isinstance(gpu_layers, int) and not isinstance(gpu_layers, bool) and gpu_layers >= 0:
        return gpu_layers
    raise UsageError(f"the number of layers on the GPU is {gpu_layers!r}, expected 0 or more, or 'all'")


def plan_offload(
    bundle: Bundle, gpu_layers: GpuLayers, llm_backend: LlmBackend | None = None, *, use_cache: bool = True
) -> Offload:
    """What of a bundle runs on a GPU, found out once on each machine.

    Args:
        bundle: What is to be run.
        gpu_layers: Layers of the LLM that are asked for; 0 leaves everything on the CPU, and nothing is looked for.
        llm_backend: Form of the LLM that is asked for; only GGUF can run on a GPU.
        use_cache: Whether a cached result is used; otherwise the GPU is tried again.

    Raises:
        EngineError: llama.cpp cannot run the LLM on the CPU either.
    """
    if gpu_layers == 0:
        return ON_CPU
    seen = detect_gpus()
    if seen.fault is not None:
        return Offload(faults=(("LLM", seen.fault),))
    encoder, llm = bundle.manifest.encoder, bundle.manifest.llm
    fault = encoder_gpu_fault(bundle.path / encoder.path, encoder, seen, use_cache=use_cache)
    outcome: EngineSettings | str = "an LLM in ONNX has no GPU"
    if llm.backend == "gguf" and llm_backend != "onnx":
        layers = llm.n_layer + 1 if gpu_layers == "all" else min(gpu_layers, llm.n_layer + 1)  # one more: its last norm
        outcome = llm_gpu_settings(bundle.path / llm.file, llm, layers, seen, use_cache=use_cache)
    settings, faults = (outcome, []) if isinstance(outcome, EngineSettings) else (None, [("LLM", outcome)])
    if fault is not None and seen.cuda:  # where there is no CUDA, nobody expects the encoder there
        faults.append(("encoder", fault))
    return Offload("cuda" if fault is None else "cpu", settings, tuple(faults))
