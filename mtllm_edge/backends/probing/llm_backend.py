"""Which form of its LLM a bundle runs in here, where it has two.

On small LLMs ONNX Runtime may be several times as fast as llama.cpp, or slower, as the processor is made. So a child
process reads the same random inputs in both forms for a few seconds, once, and ONNX is taken where it wins clearly. How
close it keeps to GGUF's vectors was measured when the bundle was made.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import msgspec

from mtllm_edge.backends.probing import cache, child_process
from mtllm_edge.backends.probing.child_process import UNAVAILABLE
from mtllm_edge.backends.probing.llama_cpp import engine_settings, machine_key
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.extras import missing_modules, version_of

MIN_SPEED_UP = 1.5
"""What ONNX Runtime must win by: GGUF is the form that is known best, and takes less memory."""
_RACE_VERSION = 1


class BackendSpeeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """LLM inputs per second, by form; none where the trial failed."""

    gguf: float
    onnx: float


@dataclass(frozen=True)
class BackendChoice:
    """A form of the LLM."""

    llm: LlmSpec
    note: str
    """Why this one: one sentence for people."""


def choose_backend(bundle: Bundle, threads: int, *, use_cache: bool = True) -> BackendChoice:
    """The bundle's only form, or ONNX where it is at least `MIN_SPEED_UP` as fast as GGUF.

    Args:
        bundle: What is to be run.
        threads: CPU threads that it will have.
        use_cache: Whether a cached result is used; otherwise both are measured again.

    Raises:
        EngineError: llama.cpp, which is measured, too, cannot run the LLM.
    """
    gguf, onnx = bundle.manifest.llm, bundle.manifest.llm_onnx
    if onnx is None:
        return BackendChoice(gguf, f"the bundle has its LLM for {gguf.backend} only")
    if any(task.adapter is not None for task in bundle.manifest.tasks.values()):
        return BackendChoice(gguf, "the bundle has adapters, which an LLM in GGUF alone can wear")
    if missing_modules("onnxruntime"):
        return BackendChoice(gguf, "ONNX Runtime is not installed (extra [onnx])")
    if not child_process.is_available():
        return BackendChoice(gguf, f"not measured: {UNAVAILABLE}")
    settings = engine_settings(bundle.path / gguf.file, gguf)
    key = machine_key(bundle.path / gguf.file, gguf) | {
        "race": f"{_RACE_VERSION} {threads} {settings.switches}",
        "onnxruntime": version_of("onnxruntime"),
        "onnx": f"{onnx.quantization} {len(onnx.float32_matrices)} {onnx.n_layer}",
    }
    speeds = cache.get("form", key, BackendSpeeds) if use_cache else None
    if speeds is None:
        # A failure is remembered, too: another release of ONNX Runtime asks again, and every load would otherwise.
        speeds = _race(bundle, gguf, onnx, threads, settings.switches) or BackendSpeeds(0.0, 0.0)
        cache.put("form", key, speeds)
    if not speeds.onnx:
        return BackendChoice(gguf, "ONNX Runtime did not get through its trial")
    measured = f"{speeds.onnx:.0f} LLM inputs/s in ONNX Runtime, {speeds.gguf:.0f} in llama.cpp"
    return BackendChoice(onnx if speeds.onnx >= MIN_SPEED_UP * speeds.gguf else gguf, f"tried here: {measured}")


def _race(
    bundle: Bundle, gguf: LlmSpec, onnx: LlmSpec, threads: int, switches: tuple[bool, bool]
) -> BackendSpeeds | None:
    arguments = [
        *child_process.llm_arguments(bundle.path / gguf.file, gguf),
        *child_process.llm_arguments(bundle.path / onnx.file, onnx),
        *map(str, (threads, *map(int, switches))),
    ]
    try:
        child = child_process.run(child_process.command("mtllm_edge.backends.probing.llm_backend_child", *arguments))
        return msgspec.json.decode(child.stdout.splitlines()[-1], type=BackendSpeeds) if child.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, IndexError, msgspec.DecodeError, UnicodeDecodeError):
        return None
