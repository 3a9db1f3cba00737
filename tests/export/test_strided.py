"""A strided bridge through every export: the bundle, and the parts and what is joined from them, follow torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtllm_edge import Bundle, Embedder
from mtllm_edge.bundle.manifest import BridgeSpec
from mtllm_edge_export.bundle import export_bundle, export_parts
from mtllm_edge_export.parts.join import join
from mtllm_edge_train.models.loading import load_stack
from mtllm_edge_train.models.stack import pad_right
from tests.fixtures.run_gguf import cosines
from tests.fixtures.tiny_checkpoint import save_checkpoint

TEXTS = ["Good morning.", "おはようございます", "காலை வணக்கம்", "x", "xy", "xyz", "один два три"]
FLOAT: Any = {"encoder_quantization": "float32", "llm_quantization": "f32"}


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_bundle_and_joined_parts_follow_torch(stride: int, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", stride=stride)
    stack = load_stack(checkpoint)
    with torch.inference_mode():
        expected_ND = stack(*pad_right(stack.tokenizer.encode(TEXTS))).numpy()
    manifests = [
        export_bundle(checkpoint, tmp_path / "bundle", **FLOAT),
        export_parts(checkpoint, tmp_path / "parts", **FLOAT),
        join(tmp_path / "parts", tmp_path / "joined"),
    ]
    for manifest in manifests:
        assert manifest.bridge == BridgeSpec(kind="strided", stride=stride)
        assert min(row.cosine_min for row in manifest.parity) >= 0.9999
    for name in ("bundle", "joined"):
        bundle = Bundle.open(tmp_path / name)
        bundle.verify()
        with Embedder.load(bundle, threads=1) as embedder:
            assert cosines(expected_ND, embedder.embed(TEXTS)).min() >= 0.9999
