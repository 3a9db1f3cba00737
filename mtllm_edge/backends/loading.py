"""Loads the encoder and the LLM of a bundle; imports only the engine that each needs."""

from __future__ import annotations

from typing import Literal

from mtllm_edge.backends.encoders.base import Encoder
from mtllm_edge.backends.llms.base import Llm
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing.llama_cpp import engine_settings
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.extras import engine_import, require
from mtllm_edge.tokenization.batching import llm_room


def load_llm(
    bundle: Bundle, llm: manifest.LlmSpec, *, threads: int, max_tokens: int, settings: EngineSettings | None = None
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
        with engine_import():
            from mtllm_edge.backends.llms.onnx import OnnxLlm
        return OnnxLlm(path, llm, threads=threads)
    settings = engine_settings(path, llm) if settings is None else settings
    with engine_import():  # only now: the probe has shown that llama.cpp can be loaded at all
        from mtllm_edge.backends.llms.llama_cpp import GgufLlm
    tasks = bundle.manifest.tasks.items()
    adapters = {name: bundle.path / task.adapter for name, task in tasks if task.adapter is not None}
    room = llm_room(max_tokens, bundle.manifest.bridge.stride)
    return GgufLlm(path, llm, settings=settings, threads=threads, max_tokens=room, adapters=adapters)


def load_encoder(bundle: Bundle, *, threads: int, device: Literal["cpu", "cuda"] = "cpu") -> Encoder:
    """Load the encoder.

    Args:
        bundle: What it is in.
        threads: CPU threads.
        device: Where CTranslate2 computes; ONNX Runtime takes the CPU.

    Raises:
        UsageError: It needs the extra [onnx].
        EngineError: Its engine cannot be imported, or refuses.
    """
    expected = bundle.manifest.encoder
    path = bundle.path / expected.path
    if expected.backend == "onnx":
        require("onnx", "onnxruntime")
        with engine_import():
            from mtllm_edge.backends.encoders.onnx import OnnxEncoder
        return OnnxEncoder(path, expected, threads=threads)
    with engine_import():
        from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
    return CTranslate2Encoder(path, expected, threads=threads, device=device)
