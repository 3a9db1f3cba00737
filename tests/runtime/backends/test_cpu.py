from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtllm_edge.backends.cpu import available_cores, default_threads, read_cpu
from tests.fixtures.subprocesses import run_python


def test_the_cpu_has_a_name() -> None:
    cpu = read_cpu()
    assert cpu.model
    assert list(cpu.flags) == sorted(cpu.flags)


def test_cpu_from_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor : 0\nmodel name : Some CPU @ 2 GHz\nflags : sse avx2 amx_int8\nmodel name : Another\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    cpu = read_cpu()
    assert cpu.model.startswith("Some CPU @ 2 GHz (")
    assert cpu.flags == ("amx_int8", "avx2", "sse")


def test_cpu_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert read_cpu().flags == ()


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (6, 6), (64, 8)])
def test_default_threads(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert default_threads() == threads


def test_cores_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_cores() == 5


@pytest.mark.parametrize("engine", ["mtllm_edge.backends.llms.llama_cpp", "mtllm_edge.backends.encoders.ctranslate2"])
def test_idle_engine_threads_use_no_cpu(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    library = "llama_cpp" if "llms" in engine else "ctranslate2"
    watch = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Watch())
"""
    assert run_python(f"import {engine}", customize=watch, folder=tmp_path).stdout.split() == ["PASSIVE", "0"]
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert run_python(f"import {engine}", customize=watch, folder=tmp_path).stdout.split() == ["PASSIVE", "1000"]
