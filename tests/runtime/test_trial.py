"""`verify --deep`: a bundle runs in a child process, and whatever becomes of the child is one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from mtllm_edge import Bundle, Embedder, trial
from mtllm_edge.cli import main
from mtllm_edge.errors import EngineError
from mtllm_edge.heads import Head
from mtllm_edge.tasks import add_task
from tests import tiny
from tests.tiny_onnx import add_onnx_form, make_model


def test_a_bundle_that_runs(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--deep", str(tiny_bundle)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "all as recorded; 3 texts ran in a child process in " in line


def test_changed_files_are_not_run(
    fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial.children, "run", lambda *_: pytest.fail("must not be run"))
    path = fresh_bundle / "llm.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert main(["verify", "--deep", str(fresh_bundle)]) == 1
    assert "llm.gguf: its SHA-256 differs" in capsys.readouterr().err


def test_numbers_that_are_not_finite(fresh_bundle: Path) -> None:
    weights = tiny.llm_weights(np.random.default_rng(tiny.SEED))
    weights["output_norm.weight"][3] = np.inf
    tiny.write_llm(fresh_bundle / "llm.gguf", weights)
    tiny.write_manifest(fresh_bundle)
    with pytest.raises(EngineError, match=r"a child process refused it: .*not finite"):
        trial.try_bundle(fresh_bundle)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            r"that ran it died \(SIGSEGV\); see `mtllm-edge doc",
        ),
        ("import os; os.abort()", r"that ran it died \(SIGABRT\)"),
        ("import time; time.sleep(60)", r"gave no answer in 0\.5 s"),
        ("raise ValueError('a bug')", r"that ran it failed \(ValueError: a bug\)"),
        ("", r"that ran it died \(exit code 0\)"),
    ],
)
def test_a_child_that_dies(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    def run(_: list[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=seconds, check=False)

    monkeypatch.setattr(trial.children, "run", run)
    monkeypatch.setattr(trial, "SECONDS", 0.5 if "sleep" in code else 60.0)
    with pytest.raises(EngineError, match=message) as caught:
        trial.try_bundle(tiny_bundle)
    assert "\n" not in str(caught.value)


def test_both_forms_are_run(fresh_bundle: Path) -> None:
    bundle = add_onnx_form(fresh_bundle)
    assert trial.run(bundle).texts == 3
    model = make_model(layers=tiny.N_LAYER)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "matrix")
    stored.raw_data = np.full((tiny.N_EMBD, tiny.N_EMBD), np.nan, np.float32).tobytes()
    onnx.save(model, bundle / "llm.onnx")
    with pytest.raises(EngineError, match=r"llm\.onnx: ONNX Runtime returned numbers that are not finite"):
        trial.run(bundle)


def test_adapters_are_worn(fresh_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny.write_lora(tmp_path / "lora.gguf", tiny.lora_weights(np.random.default_rng(1)))
    weight_CE = np.random.default_rng(9).standard_normal((2, tiny.N_EMBD), dtype=np.float32)
    add_task(Bundle.open(fresh_bundle), "mine", Head("sequence", ("a", "b"), weight_CE, None, 1.0), adapter=adapter)
    worn, pool = [], Embedder.pool
    monkeypatch.setattr(Embedder, "pool", lambda *a, **more: worn.append(more.get("task")) or pool(*a, **more))
    assert trial.run(fresh_bundle).texts == 3
    assert worn == [None, "mine"]


def test_a_quantised_bundle(tiny_variant: Callable[..., Path]) -> None:
    assert trial.run(tiny_variant(quantization="q8_0", encoder_quantization="int8")).texts == 3
