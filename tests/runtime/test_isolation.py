"""The runtime works without torch, transformers and the network: checked in child processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.subprocesses import run_python
from tests.fixtures.tiny_onnx import make_onnx_bundle, make_onnx_encoder_bundle

CLASSIFY = """
import sys
from mtllm_edge import Classifier
with Classifier.load(sys.argv[1], task="topic") as classifier:
    (prediction,) = classifier.classify(["the team is good"])
print(prediction.label, prediction.tokens)
"""
UNWANTED = ("torch", "transformers", "gguf", "peft", "mtllm_edge_train", "mtllm_edge_export")
UNIMPORTABLE = f"""
import sys
for name in {UNWANTED!r}:
    sys.modules[name] = None  # makes the import fail
"""
OFFLINE = """
import os, sys
def refuse(event, arguments):
    if event.startswith("socket."):
        print("a socket:", event, file=sys.stderr, flush=True)
        os._exit(77)
sys.addaudithook(refuse)
"""


@pytest.fixture(autouse=True)
def _probe_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty cache, so that the probing child process runs under the same conditions."""
    monkeypatch.setenv("MTLLM_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("customize", [UNIMPORTABLE, OFFLINE])
def test_classify_without_torch_and_network(tiny_bundle: Path, tmp_path: Path, customize: str) -> None:
    child = run_python(CLASSIFY, str(tiny_bundle), customize=customize, folder=tmp_path)
    assert (child.returncode, child.stderr) == (0, "")
    label, tokens = child.stdout.split()
    assert label in {"science", "sports", "travel"}
    assert int(tokens) > 3


@pytest.mark.parametrize("name", UNWANTED)
def test_blocked_modules_cannot_be_imported(tmp_path: Path, name: str) -> None:
    child = run_python(f"import {name}", customize=UNIMPORTABLE, folder=tmp_path)
    assert child.returncode == 1
    assert f"import of {name} halted" in child.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import socket; socket.socket()']))",
    ],
)
def test_network_access_is_detected(tmp_path: Path, code: str) -> None:
    assert run_python(code, customize=OFFLINE, folder=tmp_path).returncode == 77


@pytest.mark.parametrize(
    "code",
    [
        CLASSIFY,
        "from mtllm_edge.diagnostics.doctor import inspect_engine; assert inspect_engine('onnxruntime').version",
    ],
)
def test_onnx_runtime_sends_no_telemetry(
    fresh_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Telemetry is native code, which `OFFLINE` does not detect; it would create files."""
    bundle = make_onnx_bundle(make_onnx_encoder_bundle(fresh_bundle))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(home))
    child = run_python(code, str(bundle), folder=tmp_path)
    assert (child.returncode, child.stderr) == (0, "")
    assert [*home.iterdir()] == []


def test_the_import_loads_no_engine(tmp_path: Path) -> None:
    """The help of the command line must not load an engine."""
    code = "import mtllm_edge, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    child = run_python(code, folder=tmp_path)
    assert child.returncode == 0, child.stderr
    assert not {"ctranslate2", "llama_cpp", *UNWANTED} & set(child.stdout.split())
