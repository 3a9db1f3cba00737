"""Choice of the LLM backend of a bundle with both GGUF and ONNX, by a measurement in a child process.

For small LLMs, ONNX Runtime is several times as fast as llama.cpp on some processors, and slower on others. So a child
times both on the same random inputs for a few seconds, once, and ONNX is chosen if it is clearly faster. The distance
of its vectors to GGUF's was measured at export.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import msgspec

from mtllm_edge.backends.probing import cache, child_process
from mtllm_edge.backends.probing.child_process import UNAVAILABLE, ChildStartError, Failure, run_child
from mtllm_edge.backends.probing.llama_cpp import engine_settings, machine_key
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.extras import missing_modules, version_of

MIN_SPEED_UP = 1.5
"""Speed of ONNX Runtime relative to llama.cpp from which it is chosen: GGUF is better known and takes less memory."""
_MEASUREMENT_VERSION = 1


class BackendSpeeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """LLM inputs per second of each backend; 0 if the measurement failed."""

    gguf: float = 0.0
    onnx: float = 0.0


@dataclass(frozen=True)
class BackendChoice:
    """A chosen LLM backend."""

    llm: LlmSpec
    note: str
    """The reason, one sentence for people."""


def choose_backend(bundle: Bundle, threads: int, *, use_cache: bool = True) -> BackendChoice:
    """Return a bundle's only LLM backend, or ONNX if it is at least `MIN_SPEED_UP` times as fast as GGUF.

    Without `use_cache`, both are measured again. Raises EngineError if llama.cpp cannot run the LLM.
    """
    gguf, onnx = bundle.manifest.llm, bundle.manifest.llm_onnx
    if onnx is None:
        return BackendChoice(gguf, f"the bundle has its LLM for {gguf.backend} only")
    if any(task.adapter is not None for task in bundle.manifest.tasks.values()):
        return BackendChoice(gguf, "the bundle has adapters, which require the LLM in GGUF")
    if missing_modules("onnxruntime"):
        return BackendChoice(gguf, "ONNX Runtime is not installed (extra [onnx])")
    if not child_process.is_available():
        return BackendChoice(gguf, f"not measured: {UNAVAILABLE}")
    path = bundle.path / gguf.file
    settings = engine_settings(path, gguf)
    key = machine_key(path, gguf) | {
        "measurement": f"{_MEASUREMENT_VERSION} {threads} {settings.switches}",
        "onnxruntime": version_of("onnxruntime"),
        "onnx": f"{onnx.quantization} {len(onnx.float32_matrices)} {onnx.n_layer}",
    }
    arguments = (
        *child_process.spec_arguments(path, gguf),
        *child_process.spec_arguments(bundle.path / onnx.file, onnx),
        *map(str, (threads, *map(int, settings.switches))),
    )
    speeds = cache.get_or_run(
        "llm-backend", key, BackendSpeeds, lambda: (_measure(arguments), True), use_cache=use_cache
    )
    if not speeds.onnx:
        return BackendChoice(gguf, "the measurement of ONNX Runtime failed")
    note = f"tried here: {speeds.onnx:.0f} LLM inputs/s in ONNX Runtime, {speeds.gguf:.0f} in llama.cpp"
    return BackendChoice(onnx if speeds.onnx >= MIN_SPEED_UP * speeds.gguf else gguf, note)


def _measure(arguments: tuple[str, ...]) -> BackendSpeeds:
    """Run the child; a failure is cached too, since every load would repeat it."""
    command = child_process.command("mtllm_edge.backends.probing.llm_backend_child", *arguments)
    with contextlib.suppress(ChildStartError):
        speeds = run_child(command, BackendSpeeds)
        if not isinstance(speeds, Failure):
            return speeds
    return BackendSpeeds()
