"""`--llm-layers`: the first layers of a trained LLM, faithful to torch's, and the answers that changed are line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mtllm_edge import Bundle, Classifier
from mtllm_edge.errors import UsageError
from mtllm_edge_export import cli
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_export.parity import load_sentences
from tests.fixtures.tiny_checkpoint import save_checkpoint


def labels(bundle: Path, task: str) -> list[str]:
    with Classifier.load(bundle, task=task, threads=1) as classifier:
        return [found.label for found in classifier.classify([sentence.text for sentence in load_sentences()])]


def test_what_a_cut_changes_is_told(checkpoint: Path, float_bundle: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    cut = tmp_path / "cut"
    manifest = export_bundle(
        checkpoint, cut, encoder_quantization="float32", llm_quantization="f32", llm_layers=1, log=lines.append
    )
    assert (Bundle.open(float_bundle).manifest.llm.n_layer, manifest.llm.n_layer) == (2, 1)
    assert {row.component: row.cosine_min >= 0.9999 for row in manifest.parity}["stack"]  # of torch with one layer
    for task in ("topic", "sentiment"):
        same = np.mean([old == new for old, new in zip(labels(float_bundle, task), labels(cut, task), strict=True)])
        (line,) = (line for line in lines if f"task {task} has the same prediction" in line)
        assert line.startswith("with 1 layers, ")
        assert float(re.findall(r"(\d+)%", line)[0]) == pytest.approx(100 * same, abs=0.51)
        assert same < 1


def test_no_fewer_layers_than_there_are(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has 2 layers; choose fewer"):
        export_bundle(checkpoint, tmp_path / "cut", llm_layers=2)
    assert not (tmp_path / "cut").exists()


def test_parts_are_not_cut(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    arguments = [str(checkpoint), "--out", str(tmp_path / "parts"), "--without-llm", "--llm-layers", "1"]
    result = CliRunner().invoke(cli.export, arguments)
    assert isinstance(result.exception, UsageError)
    assert "--without-llm and --llm-layers exclude each other" in str(result.exception)
