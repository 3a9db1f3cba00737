"""What of a bundle runs on a GPU, where the caller asks for one.

llama.cpp puts layers of the LLM there, if it was built for that, and CTranslate2 the encoder, on CUDA alone. What does not
work there (see `mtllm_edge.gpu_trials`) runs on the CPU, and the caller is told.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from mtllm_edge.bundle import Bundle
from mtllm_edge.errors import UsageError
from mtllm_edge.gpu_trials import encoder_fault, llm_outcome, look
from mtllm_edge.manifest import LlmBackend
from mtllm_edge.safety import EngineSettings

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
    bundle: Bundle, gpu_layers: GpuLayers, llm_backend: LlmBackend | None = None, *, fresh: bool = False
) -> Offload:
    """What of a bundle runs on a GPU, found out once on each machine.

    Args:
        bundle: What is to be run.
        gpu_layers: Layers of the LLM that are asked for; 0 leaves everything on the CPU, and nothing is looked for.
        llm_backend: Form of the LLM that is asked for; only GGUF can run on a GPU.
        fresh: Try again even where the cache has an answer.

    Raises:
        EngineError: llama.cpp cannot run the LLM on the CPU either.
    """
    if gpu_layers == 0:
        return ON_CPU
    seen = look()
    if seen.fault is not None:
        return Offload(faults=(("LLM", seen.fault),))
    encoder, llm = bundle.manifest.encoder, bundle.manifest.llm
    fault = encoder_fault(bundle.path / encoder.path, encoder, seen, fresh=fresh)
    outcome: EngineSettings | str = "an LLM in ONNX has no GPU"
    if llm.backend == "gguf" and llm_backend != "onnx":
        layers = llm.n_layer + 1 if gpu_layers == "all" else min(gpu_layers, llm.n_layer + 1)  # one more: its last norm
        outcome = llm_outcome(bundle.path / llm.file, llm, layers, seen, fresh=fresh)
    settings, faults = (outcome, []) if isinstance(outcome, EngineSettings) else (None, [("LLM", outcome)])
    if fault is not None and seen.cuda:  # where there is no CUDA, nobody expects the encoder there
        faults.append(("encoder", fault))
    return Offload("cuda" if fault is None else "cpu", settings, tuple(faults))

    """Ask the engines in a child process what they see; never raises."""
    if not children.can_be_started():
        return Seen(fault="a GPU cannot be tried, since there is no Python to start")
    try:
        seen = ask_child(children.command(_CHILD, "look"), Seen)
    except NoChildError as error:
        return Seen(fault=f"a GPU cannot be tried, since {error}")
    return Seen(fault=f"looking for a GPU {seen.reason}") if isinstance(seen, Failure) else seen


def gpu_backends() -> list[str]:
    """What this build of llama.cpp could use, by the names of its libraries: ``CUDA``, ``Metal``, ``Vulkan`` ..."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (spec.submodule_search_locations or [])] if spec else []
    names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
    found = {match.group(1) for match in map(_LIBRARY.match, names) if match}
    return sorted(name.capitalize() if name in ("metal", "vulkan") else name.upper() for name in found)


def llm_outcome(
    bundle: Bundle, gpu_layers: GpuLayers, seen: Seen, llm_backend: LlmBackend | None, *, fresh: bool
) -> EngineSettings | str:
    """The settings with which the LLM runs on the GPU, or why it does not."""
    llm = bundle.manifest.llm
    if llm.backend != "gguf" or llm_backend == "onnx":
        return "an LLM in ONNX has no GPU"
    if not seen.llama:
        built = gpu_backends()
        return (
            f"llama.cpp sees no GPU here (this build is for {', '.join(built)})"
            if built
            else "this build of llama-cpp-python is for the CPU alone"
        )
    path = bundle.path / llm.file
    layers = llm.n_layer + 1 if gpu_layers == "all" else min(gpu_layers, llm.n_layer + 1)
    cpu = engine_settings(path, llm)
    key = machine_key(path, llm) | {
        "trial": f"{_TRIAL_VERSION} {cpu.switches}",
        "gpus": ", ".join(seen.llama),
        "layers": f"{layers} of {llm.n_layer}",
    }
    answer = None if fresh else recall("gpu-llm", key, _LlmAnswer)
    if answer is None:
        try:
            answer, lasting = _try_llm(path, llm, cpu, layers)
        except NoChildError as error:
            answer, lasting = _LlmAnswer(None, f"was not tried: {error}"), False
        if lasting:
            remember("gpu-llm", key, answer)
    if answer.switches is None:
        return f"{seen.llama[0]} {answer.fault}"
    return EngineSettings(*answer.switches, f"tried here: {layers} layers on {seen.llama[0]} work", gpu_layers=layers)


def _try_llm(path: Path, llm: Llm, cpu: EngineSettings, layers: int) -> tuple[_LlmAnswer, bool]:
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


def encoder_fault(bundle: Bundle, seen: Seen, *, fresh: bool) -> str | None:
    """Why the encoder runs on the CPU; None where it runs on CUDA."""
    encoder = bundle.manifest.encoder
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
    answer = None if fresh else recall("gpu-encoder", key, _EncoderAnswer)
    if answer is None:
        fault, lasting = _try_encoder(bundle.path / encoder.path, encoder)
        answer = _EncoderAnswer(fault)
        if lasting:
            remember("gpu-encoder", key, answer)
    return None if answer.fault is None else f"CTranslate2 on CUDA {answer.fault}"


def _try_encoder(folder: Path, encoder: Encoder) -> tuple[str | None, bool]:
    """What is wrong with an encoder on CUDA, and whether it will be the same the next time."""
    described = msgspec.json.encode(encoder).decode()
    try:
        trial = ask_child(children.command(_CHILD, "encode", str(folder.resolve()), described), EncoderTrial)
    except NoChildError as error:
        return f"was not tried: {error}", False
    if isinstance(trial, Failure):
        return trial.reason, True
    if trial.error is not None:
        return f"failed: {trial.error}", False
    if trial.cosine < MIN_COSINE:
        return f"computed wrong numbers (cosine {trial.cosine:.3f} with the CPU)", True
    return None, True
