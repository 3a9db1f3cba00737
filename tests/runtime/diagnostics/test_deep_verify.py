"""`verify --deep`: a bundle runs in a child process, and a failure of the child is a one-line error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mtllm_edge import Bundle, Embedder
from mtllm_edge.backends.probing import child_process
from mtllm_edge.cli.main import main
from mtllm_edge.diagnostics import deep_verify
from mtllm_edge.errors import EngineError
from mtllm_edge.tasks.head import Head
from mtllm_edge.tasks.store import add_task
from tests.fixtures import tiny_bundle
from tests.fixtures.tiny_onnx import add_onnx_form, make_model


def test_a_bundle_that_runs(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--deep", str(tiny_bundle)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "all as recorded; 3 texts ran in a child process in " in line


def test_changed_files_are_not_run(
    fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child_process, "run", lambda *_: pytest.fail("must not be run"))
    path = fresh_bundle / "llm.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert main(["verify", "--deep", str(fresh_bundle)]) == 1
    assert "llm.gguf: its SHA-256 differs" in capsys.readouterr().err


def test_probabilities_that_are_not_finite(fresh_bundle: Path) -> None:
    weights = tiny_bundle.llm_weights(np.random.default_rng(tiny_bundle.SEED))
    weights["output_norm.weight"][3] = np.inf
    tiny_bundle.write_llm(fresh_bundle / "llm.gguf", weights)
    tiny_bundle.write_manifest(fresh_bundle)
    with pytest.raises(EngineError, match=r"running it in a child process failed: .*not finite"):
        deep_verify.run_in_child(fresh_bundle)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            r"ended the process \(SIGSEGV\); see `mtllm-edge doc",
        ),
        ("import os; os.abort()", r"ended the process \(SIGABRT\)"),
        ("import time; time.sleep(60)", r"gave no answer in 0\.5 s"),
        ("raise ValueError('a bug')", r"cannot be run: the child process could not run \(ValueError: a bug\)"),
        ("", r"gave an unreadable answer"),
    ],
)
def test_a_failing_child(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    def run(_: list[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=seconds, check=False)

    monkeypatch.setattr(child_process, "run", run)
    monkeypatch.setattr(deep_verify, "SECONDS", 0.5 if "sleep" in code else 60.0)
    with pytest.raises(EngineError, match=message) as caught:
        deep_verify.run_in_child(tiny_bundle)
    assert "\n" not in str(caught.value)


def test_both_llm_backends_are_run(fresh_bundle: Path) -> None:
    bundle = add_onnx_form(fresh_bundle)
    assert deep_verify.run(bundle).texts == 3
    model = make_model(layers=tiny_bundle.N_LAYER)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "matrix")
    stored.raw_data = np.full((tiny_bundle.N_EMBD, tiny_bundle.N_EMBD), np.nan, np.float32).tobytes()
    onnx.save(model, bundle / "llm.onnx")
    with pytest.raises(EngineError, match=r"llm\.onnx: ONNX Runtime returned numbers that are not finite"):
        deep_verify.run(bundle)


def test_adapters_are_applied(fresh_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny_bundle.write_lora(tmp_path / "lora.gguf", tiny_bundle.lora_weights(np.random.default_rng(1)))
    weight_CE = np.random.default_rng(9).standard_normal((2, tiny_bundle.N_EMBD), dtype=np.float32)
    add_task(Bundle.open(fresh_bundle), "mine", Head("sequence", ("a", "b"), weight_CE, None, 1.0), adapter=adapter)
    adapters, pool = [], Embedder.pool

    def recorded(*arguments: Any, **options: Any) -> Any:
        adapters.append(options.get("task"))
        return pool(*arguments, **options)

    monkeypatch.setattr(Embedder, "pool", recorded)
    assert deep_verify.run(fresh_bundle).texts == 3
    assert adapters == [None, "mine"]


def test_a_quantized_bundle(tiny_variant: Callable[..., Path]) -> None:
    assert deep_verify.run(tiny_variant(quantization="q8_0", encoder_quantization="int8")).texts == 3
