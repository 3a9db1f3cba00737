"""A bundle's LLM in the engine of its form, the only one that is imported."""

from __future__ import annotations

from mtllm_edge import manifest
from mtllm_edge.batching import llm_room
from mtllm_edge.bundle import Bundle
from mtllm_edge.extras import importing, require
from mtllm_edge.llms.base import Llm
from mtllm_edge.safety import EngineSettings, engine_settings


def load_llm(
    bundle: Bundle, llm: manifest.Llm, *, threads: int, max_tokens: int, settings: EngineSettings | None = None
) -> Llm:
    """Load one form of the LLM.

    Args:
        bundle: What it is in.
        llm: The form.
        threads: CPU threads.
        max_tokens: Most encoder states in a batch.
        settings: How llama.cpp is used, where part of the LLM goes to a GPU; None is what is safe on the CPU.

    Raises:
        UsageError: It needs the extra [onnx].
        ModelError: The file is not what the manifest describes.
        EngineError: Its engine cannot be imported, or refuses.
    """
    path = bundle.path / llm.file
    if llm.backend == "onnx":
        require("onnx", "onnxruntime")
        with importing():
            from mtllm_edge.llms.onnx import OnnxLlm
        return OnnxLlm(path, llm, threads=threads)
    settings = engine_settings(path, llm) if settings is None else settings
    with importing():  # only now: the probe has shown that llama.cpp can be loaded at all
        from mtllm_edge.llms.gguf import GgufLlm
    tasks = bundle.manifest.tasks.items()
    adapters = {name: bundle.path / task.adapter for name, task in tasks if task.adapter is not None}
    room = llm_room(max_tokens, bundle.manifest.bridge.stride)
    return GgufLlm(path, llm, settings=settings, threads=threads, max_tokens=room, adapters=adapters)
