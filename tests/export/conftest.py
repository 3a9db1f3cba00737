"""Checkpoints and bundles shared by the export tests: made once, read only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtllm_edge_export.bundle import export_bundle
from tests.fixtures.tiny_checkpoint import save_checkpoint

# The models are tiny: a second thread would only wait, and spin while it waits.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT encoder, causal LLM, adapter, two tasks."""
    return save_checkpoint(tmp_path_factory.mktemp("bert") / "checkpoint")


@pytest.fixture(scope="session")
def nllb_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """M2M100 encoder with language tokens, bidirectional LLM."""
    folder = tmp_path_factory.mktemp("nllb") / "checkpoint"
    return save_checkpoint(folder, family="m2m_100", attention="bidirectional")


@pytest.fixture(scope="session")
def float_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint`, exported without any quantisation."""
    out = tmp_path_factory.mktemp("float") / "bundle"
    export_bundle(checkpoint, out, encoder_quantization="float32", llm_quantization="f32")
    return out
