"""Choice of the LLM backend for a bundle that has its LLM in GGUF and in ONNX."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.backends.llms.llama_cpp import GgufLlm
from mtllm_edge.backends.llms.onnx import OnnxLlm
from mtllm_edge.backends.probing import child_process, llm_backend
from mtllm_edge.backends.probing.cache import CACHE_VARIABLE
from mtllm_edge.backends.probing.llm_backend import BackendSpeeds, choose_backend
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.cli.main import main
from mtllm_edge.errors import ModelError, UsageError
from tests.fixtures import tiny_bundle
from tests.fixtures.tiny_onnx import add_onnx_form


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return add_onnx_form(tiny_bundle.make_tiny_bundle(tmp_path_factory.mktemp("forms") / "bundle"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measuring_child(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Replace the measuring child process by a program; return the list of started modules."""
    real = child_process.command

    def replace(program: str) -> list[str]:
        started_modules: list[str] = []

        def command(module: str, *arguments: str) -> list[str]:
            started_modules.append(module)
            is_measurement = module == "mtllm_edge.backends.probing.llm_backend_child"
            return [sys.executable, "-c", program] if is_measurement else real(module, *arguments)

        monkeypatch.setattr(child_process, "command", command)
        return started_modules

    return replace


def speeds_program(gguf: float, onnx: float) -> str:
    return f"print({msgspec.json.encode(BackendSpeeds(gguf, onnx)).decode()!r})"


@pytest.mark.parametrize(("onnx", "backend"), [(1499.0, "gguf"), (1500.0, "onnx")])
def test_onnx_must_be_clearly_faster(
    bundle: Path, measuring_child: Callable[[str], list[str]], onnx: float, backend: str
) -> None:
    started_modules = measuring_child(speeds_program(1000, onnx))
    choice = choose_backend(Bundle.open(bundle), 2)
    assert choice.llm.backend == backend
    assert choice.note == f"tried here: {onnx:.0f} LLM inputs/s in ONNX Runtime, 1000 in llama.cpp"
    measurements = started_modules.count("mtllm_edge.backends.probing.llm_backend_child")
    assert choose_backend(Bundle.open(bundle), 2) == choice  # from the cache
    assert started_modules.count("mtllm_edge.backends.probing.llm_backend_child") == measurements == 1
    choose_backend(Bundle.open(bundle), 1)  # another number of threads is measured separately
    choose_backend(Bundle.open(bundle), 2, use_cache=False)
    assert started_modules.count("mtllm_edge.backends.probing.llm_backend_child") == 3


def test_the_measurement_runs_on_this_machine(bundle: Path) -> None:
    note = choose_backend(Bundle.open(bundle), 1).note
    speeds = [float(word) for word in note.split() if word.isdigit()]
    assert len(speeds) == 2
    assert min(speeds) > 0


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "print('fast')", "pass", "import os; os.abort()"])
def test_gguf_is_the_fallback(bundle: Path, measuring_child: Callable[[str], list[str]], program: str) -> None:
    started_modules = measuring_child("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); " + program)
    choice = choose_backend(Bundle.open(bundle), 2)
    assert choose_backend(Bundle.open(bundle), 2) == choice
    assert started_modules.count("mtllm_edge.backends.probing.llm_backend_child") == 1  # not at every load
    assert (choice.llm.backend, choice.note) == ("gguf", "the measurement of ONNX Runtime failed")


def test_without_onnx_runtime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_backend, "missing_modules", lambda *modules: list(modules))
    choice = choose_backend(Bundle.open(bundle), 2)
    assert choice.llm.backend == "gguf"
    assert "not installed" in choice.note


def test_in_a_packaged_application(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert choose_backend(Bundle.open(bundle), 2).llm.backend == "gguf"


def test_the_requested_backend_is_used(bundle: Path, measuring_child: Callable[[str], list[str]]) -> None:
    started_modules = measuring_child(speeds_program(1, 1))
    with Embedder.load(bundle, llm_backend="onnx") as embedder:
        assert isinstance(embedder._llm, OnnxLlm)
        onnx_NE = embedder.embed(["a good team", "b"])
    with Embedder.load(bundle, llm_backend="gguf") as embedder:
        assert isinstance(embedder._llm, GgufLlm)
        gguf_NE = embedder.embed(["a good team", "b"])
    assert "mtllm_edge.backends.probing.llm_backend_child" not in started_modules
    assert np.abs(onnx_NE - gguf_NE).max() > 1e-3  # the tiny ONNX body computes something else
    with Classifier.load(bundle, task="topic", llm_backend="onnx") as classifier:
        assert isinstance(classifier._embedder._llm, OnnxLlm)


def test_a_missing_backend(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="has its LLM for gguf only"):
        Embedder.load(tiny_bundle, llm_backend="onnx")
    assert main(["embed", "-b", str(tiny_bundle), "a", "--llm-backend", "onnx"]) == 2
    assert "has its LLM for gguf only; leave the backend out" in capsys.readouterr().err


def test_the_commands(
    bundle: Path, measuring_child: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    measuring_child(speeds_program(1000, 3000))
    for backend in ("auto", "gguf", "onnx"):
        assert main(["classify", "-b", str(bundle), "-t", "topic", "a", "--llm-backend", backend]) == 0
    capsys.readouterr()
    assert main(["info", str(bundle)]) == 0
    assert "mean pooling, f32 GGUF, " in (info := capsys.readouterr().out)
    assert " or f32 ONNX, " in info
    assert main(["doctor", str(bundle)]) == 0
    assert "ONNX (tried here: 3000 LLM inputs/s in ONNX Runtime, 1000 in llama.cpp)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"n_embd": 64}, {"n_layer": 7}, {"attention": "bidirectional"}, {"backend": "gguf"}]
)
def test_both_backends_must_have_the_same_body(bundle: Path, change: dict[str, object]) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.llm_onnx is not None
    second_llm = msgspec.structs.replace(manifest.llm_onnx, **change)
    text = msgspec.structs.replace(manifest, llm_onnx=second_llm).to_json()
    with pytest.raises(ModelError, match="not the ONNX form of the GGUF body"):
        parse_manifest(text, origin="bundle.json")


def test_a_damaged_second_llm_is_refused(tmp_path: Path) -> None:
    folder = add_onnx_form(tiny_bundle.make_tiny_bundle(tmp_path / "bundle"))
    content = (folder / "llm.onnx").read_bytes()
    (folder / "llm.onnx").write_bytes(b"\xff" * len(content))
    with pytest.raises(ModelError, match=r"llm\.onnx"):
        Bundle.open(folder)
