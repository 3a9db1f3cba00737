"""A bundle's encoder in the engine of its form, the only one that is imported."""

from __future__ import annotations

from mtllm_edge.bundle import Bundle
from mtllm_edge.encoders.base import Encoder
from mtllm_edge.errors import EngineError
from mtllm_edge.extras import require


def load_encoder(bundle: Bundle, *, threads: int) -> Encoder:
    """Load the encoder.

    Raises:
        UsageError: It needs the extra [onnx].
        EngineError: Its engine cannot be imported, or refuses.
    """
    expected = bundle.manifest.encoder
    path = bundle.path / expected.path
    if expected.backend == "onnx":
        require("onnx", "onnxruntime")
    try:
        if expected.backend == "onnx":
            from mtllm_edge.encoders.onnx import OnnxEncoder as Engine
        else:
            from mtllm_edge.encoders.ctranslate2 import CTranslate2Encoder as Engine
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"an engine cannot be imported ({error}); run `mtllm-edge doctor`") from None
    return Engine(path, expected, threads=threads)
