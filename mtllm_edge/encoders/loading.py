"""A bundle's encoder in the engine of its form, the only one that is imported."""

from __future__ import annotations

from typing import Literal

from mtllm_edge.bundle import Bundle
from mtllm_edge.encoders.base import Encoder
from mtllm_edge.extras import importing, require


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
        with importing():
            from mtllm_edge.encoders.onnx import OnnxEncoder
        return OnnxEncoder(path, expected, threads=threads)
    with importing():
        from mtllm_edge.encoders.ctranslate2 import CTranslate2Encoder
    return CTranslate2Encoder(path, expected, threads=threads, device=device)
