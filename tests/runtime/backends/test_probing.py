"""Probing of llama.cpp: it may crash, hang or miscompute in a child process; the parent selects working settings."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mtllm_edge import Bundle, Classifier
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing import child_process, llama_cpp
from mtllm_edge.backends.probing.cache import CACHE_VARIABLE
from mtllm_edge.backends.probing.llama_cpp import FAST, NO_EXTRA_BUFFERS, PLAIN, engine_settings
from mtllm_edge.errors import EngineError

Command = Callable[[Path, object, tuple[bool, bool]], list[str]]

GOOD = """print('{"pooled": [[1, 2, 3], [4, 5, 6]]}')"""
CLOSE = """print('{"pooled": [[1, 2.01, 3], [4, 5, 6]]}')"""
WRONG = """print('{"pooled": [[1, 2, 3], [-4, 5, -6]]}')"""
OTHER_SHAPE = """print('{"pooled": [[1, 2, 3]]}')"""
NOT_FINITE = """print('{"pooled": [[1, 2, 3], [4, 1e999, 6]]}')"""
REFUSES = """print('{"error": "no memory"}')"""
SILENT = ""
CRASHES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
ABORTS = "import os; os.abort()"
FAILS = "raise SystemExit(3)"
HANGS = "import time; time.sleep(60)"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[tuple[bool, bool], str]], list[tuple[bool, bool]]]:
    """Replace the child processes of some settings by programs; return the list of tried settings."""
    real = llama_cpp._child_command

    def replace(programs: dict[tuple[bool, bool], str]) -> list[tuple[bool, bool]]:
        tried: list[tuple[bool, bool]] = []

        def command(path: Path, llm: object, switches: tuple[bool, bool], gpu_layers: int) -> list[str]:
            tried.append(switches)
            if switches in programs:
                # A shell's core file, where the system writes them, would land in the checkout.
                return [sys.executable, "-c", f"{_NO_CORE}; {programs[switches]}"]
            return real(path, llm, switches, gpu_layers)  # type: ignore[arg-type]

        monkeypatch.setattr(llama_cpp, "_child_command", command)
        return tried

    return replace


_NO_CORE = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))" if sys.platform != "win32" else "pass"


def probe(bundle: Path, *, use_cache: bool = True) -> EngineSettings:
    return engine_settings(bundle / "llm.gguf", Bundle.open(bundle).manifest.llm, use_cache=use_cache)


def test_the_probe_on_this_machine(own_cache: Path, tiny_bundle: Path) -> None:
    settings = probe(tiny_bundle)
    assert settings.switches in (FAST, NO_EXTRA_BUFFERS, PLAIN)
    assert settings.note.startswith("tried here: the ")


def test_results_are_cached(
    own_cache: Path, tiny_bundle: Path, children: Callable[..., list[tuple[bool, bool]]]
) -> None:
    tried = children({PLAIN: GOOD, FAST: GOOD})
    assert probe(tiny_bundle) == probe(tiny_bundle)
    assert tried == [PLAIN, FAST]
    assert len(list(own_cache.iterdir())) == 1
    probe(tiny_bundle, use_cache=False)
    assert tried == [PLAIN, FAST] * 2


def test_each_quantization_is_probed(
    own_cache: Path, tiny_variant: Callable[..., Path], children: Callable[..., list[tuple[bool, bool]]]
) -> None:
    tried = children({PLAIN: GOOD, FAST: GOOD})
    probe(tiny_variant(quantization="q8_0"))
    probe(tiny_variant(quantization="q4_0"))
    probe(tiny_variant(quantization="q4_0"))
    assert len(tried) == 4


def test_each_build_is_probed(
    own_cache: Path,
    tiny_bundle: Path,
    children: Callable[..., list[tuple[bool, bool]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = children({PLAIN: GOOD, FAST: GOOD})
    probe(tiny_bundle)
    monkeypatch.setattr(llama_cpp, "engine_build", lambda: "9.9.9 rebuilt")
    probe(tiny_bundle)
    assert len(tried) == 4


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (CRASHES, "ended the process (SIGSEGV)"),
        (ABORTS, "ended the process (SIGABRT)"),
        (FAILS, "ended the process (exit code 3)"),
        (WRONG, "computed wrong numbers (cosine -0."),
        (OTHER_SHAPE, "computed wrong numbers (cosine 0.000"),
        (NOT_FINITE, "gave an unreadable answer"),
        (REFUSES, "failed: no memory"),
        (SILENT, "gave an unreadable answer"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_fallback_settings(
    own_cache: Path,
    tiny_bundle: Path,
    children: Callable[..., list[tuple[bool, bool]]],
    program: str,
    reason: str,
) -> None:
    children({FAST: program, NO_EXTRA_BUFFERS: CLOSE, PLAIN: GOOD})
    settings = probe(tiny_bundle)
    assert settings.switches == NO_EXTRA_BUFFERS
    assert f"the fast settings {reason}" in settings.note
    assert probe(tiny_bundle) == settings


def test_plain_kernels_are_the_last_fallback(
    own_cache: Path, tiny_bundle: Path, children: Callable[..., list[tuple[bool, bool]]]
) -> None:
    children({FAST: CRASHES, NO_EXTRA_BUFFERS: WRONG, PLAIN: GOOD})
    settings = probe(tiny_bundle)
    assert settings.switches == PLAIN
    assert settings.note.startswith("tried here: the plain kernels work; the fast settings ended the process")


def test_a_hanging_child_is_killed(
    own_cache: Path,
    tiny_bundle: Path,
    children: Callable[..., list[tuple[bool, bool]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    children({FAST: HANGS, NO_EXTRA_BUFFERS: GOOD, PLAIN: GOOD})
    monkeypatch.setattr(child_process, "TIMEOUT_SECONDS", 3.0)
    settings = probe(tiny_bundle)
    assert settings.switches == NO_EXTRA_BUFFERS
    assert "the fast settings gave no answer in 3 s" in settings.note


def test_fast_settings_without_a_reference(
    own_cache: Path, tiny_bundle: Path, children: Callable[..., list[tuple[bool, bool]]]
) -> None:
    children({FAST: GOOD, PLAIN: CRASHES})
    settings = probe(tiny_bundle)
    assert settings.switches == FAST
    assert "the plain kernels ended the process" in settings.note


def test_no_settings_work(own_cache: Path, tiny_bundle: Path, children: Callable[..., list[tuple[bool, bool]]]) -> None:
    children({FAST: CRASHES, NO_EXTRA_BUFFERS: CRASHES, PLAIN: CRASHES})
    with pytest.raises(EngineError, match=r"llm\.gguf: llama\.cpp does not work here .*run `mtllm-edge doctor`"):
        probe(tiny_bundle)
    assert not own_cache.exists()  # tomorrow's build may work


def test_a_refused_file_is_not_cached(
    own_cache: Path, tiny_bundle: Path, children: Callable[..., list[tuple[bool, bool]]]
) -> None:
    tried = children({PLAIN: REFUSES})
    with pytest.raises(EngineError, match=r"llm\.gguf: no memory; run `mtllm-edge doctor`"):
        probe(tiny_bundle)
    assert tried == [PLAIN]


def test_the_child_reports_a_refused_file(own_cache: Path, fresh_bundle: Path) -> None:
    llm = Bundle.open(fresh_bundle).manifest.llm
    path = fresh_bundle / "llm.gguf"
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.model", b"tokenizer.ggml.modem"))
    with pytest.raises(EngineError, match=r"llm\.gguf: llama\.cpp cannot load it \(.*\); run `mtllm-edge doctor`$"):
        engine_settings(path, llm)


def test_an_unwritable_cache(
    tiny_bundle: Path,
    children: Callable[..., list[tuple[bool, bool]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    children({PLAIN: GOOD, FAST: GOOD})
    assert probe(tiny_bundle).switches == FAST


@pytest.mark.parametrize("content", [b"", b"{}", b'{"key": {}, "settings": {"extra_buffers": true}}', b"\xff"])
def test_a_damaged_cache(
    own_cache: Path, tiny_bundle: Path, children: Callable[..., list[tuple[bool, bool]]], content: bytes
) -> None:
    tried = children({PLAIN: GOOD, FAST: GOOD})
    settings = probe(tiny_bundle)
    (file,) = own_cache.iterdir()
    file.write_bytes(content)
    assert probe(tiny_bundle) == settings
    assert len(tried) == 4


def test_a_frozen_application_starts_no_child(
    own_cache: Path,
    tiny_bundle: Path,
    children: Callable[..., list[tuple[bool, bool]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = children({})
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert probe(tiny_bundle).switches == PLAIN
    assert tried == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/nowhere/python"], "no child process could be started (No such file or directory)"),
        ([sys.executable, "-c", "import no_such_thing"], "(ModuleNotFoundError: No module named 'no_such_thing')"),
    ],
)
def test_no_child_process(
    own_cache: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], reason: str
) -> None:
    monkeypatch.setattr(llama_cpp, "_child_command", lambda *_: command)
    settings = probe(tiny_bundle)
    assert settings.switches == PLAIN
    assert settings.note.startswith("not tried: ")
    assert reason in settings.note
    assert not own_cache.exists()


def test_the_child_does_not_import_from_the_working_folder(
    own_cache: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "msgspec", "llama_cpp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a trap')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "trap" not in probe(tiny_bundle).note
    assert probe(tiny_bundle).note.startswith("tried here")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_classifier_works_if_the_fast_settings_crash(
    own_cache: Path, tiny_bundle: Path, children: Callable[..., list[tuple[bool, bool]]]
) -> None:
    tried = children({FAST: CRASHES, NO_EXTRA_BUFFERS: ABORTS})
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        predictions = classifier.classify(["the team is good"])
    assert tried == [PLAIN, FAST, NO_EXTRA_BUFFERS]
    assert predictions[0].label in classifier.labels


def test_signals_have_names() -> None:
    assert child_process.exit_reason(-int(signal.SIGILL)) == "SIGILL"
    assert child_process.exit_reason(-120) == "signal 120"
    assert child_process.exit_reason(0xC0000005) == "exit code 3221225477"
