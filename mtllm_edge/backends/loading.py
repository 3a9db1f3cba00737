"""Loading of a bundle's encoder and LLM, with imports of only the engines that they need."""

from __future__ import annotations

from mtllm_edge.backends.encoders.base import Encoder
from mtllm_edge.backends.llms.base import Llm
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing.gpu import Device
from mtllm_edge.backends.probing.llama_cpp import engine_settings
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.extras import engine_import, require
from mtllm_edge.tokenization.batching import max_llm_inputs


def load_llm(
    bundle: Bundle, llm: LlmSpec, *, threads: int, max_tokens: int, settings: EngineSettings | None = None
) -> Llm:
    """Load the LLM in one of the bundle's backends, for batches of at most `max_tokens` encoder tokens.

    Settings of llama.cpp are for an LLM with layers on a GPU; None takes those for the CPU.

    Raises:
        UsageError: The extra [onnx] is required.
        ModelError: The file does not match the manifest.
        EngineError: The engine cannot be imported, or refuses the file.
    """
    path = bundle.path / llm.file
    if llm.backend == "onnx":
        require("onnx", "onnxruntime")
        with engine_import():
            from mtllm_edge.backends.llms.onnx import OnnxLlm
        return OnnxLlm(path, llm, threads=threads)
    settings = engine_settings(path, llm) if settings is None else settings
    with engine_import():  # only after the probe, since the import itself may crash
        from mtllm_edge.backends.llms.llama_cpp import GgufLlm
    tasks = bundle.manifest.tasks.items()
    adapters = {name: bundle.path / task.adapter for name, task in tasks if task.adapter is not None}
    max_inputs = max_llm_inputs(max_tokens, bundle.manifest.bridge.stride)
    return GgufLlm(path, llm, settings=settings, threads=threads, max_tokens=max_inputs, adapters=adapters)


def load_encoder(bundle: Bundle, *, threads: int, device: Device = "cpu") -> Encoder:
    """Load the encoder; `device` is for CTranslate2, since ONNX Runtime runs on the CPU.

    Raises:
        UsageError: The extra [onnx] is required.
        EngineError: The engine cannot be imported, or refuses the model.
    """
    spec = bundle.manifest.encoder
    path = bundle.path / spec.path
    if spec.backend == "onnx":
        require("onnx", "onnxruntime")
        with engine_import():
            from mtllm_edge.backends.encoders.onnx import OnnxEncoder
        return OnnxEncoder(path, spec, threads=threads)
    with engine_import():
        from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
    return CTranslate2Encoder(path, spec, threads=threads, device=device)
