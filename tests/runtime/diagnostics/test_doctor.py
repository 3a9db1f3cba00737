from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from mtllm_edge.backends.cpu import Cpu
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing.gpu import GpuInventory, Offload
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.main import main
from mtllm_edge.diagnostics import doctor
from mtllm_edge.errors import EngineError
from mtllm_edge.extras import EXTRAS

WORKING = doctor.Engine(version="1.0", build="everything")


@pytest.fixture
def fake_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules that shadow installed ones."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_working_engine_has_version_and_build() -> None:
    engine = doctor.inspect_engine("llama-cpp-python")
    assert engine.fault is None
    assert engine.version
    assert "=" in engine.build


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("raise ImportError('libfoo.so: cannot open')", "broken: ImportError: libfoo.so: cannot open"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "broken: its import ended the process (Illegal"),
        ("import sys; sys.exit(3)", "broken: its import ended with exit code 3"),
        ("import time; time.sleep(60)", "broken: its import did not end within 1 s"),
    ],
)
def test_a_broken_engine_is_reported(
    fake_modules: Path, monkeypatch: pytest.MonkeyPatch, content: str, fault: str
) -> None:
    (fake_modules / "ctranslate2.py").write_text(content)
    if "sleep" in content:
        monkeypatch.setattr(doctor, "_IMPORT_SECONDS", 1)
    assert (doctor.inspect_engine("ctranslate2").fault or "").startswith(fault)


def test_a_missing_engine_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    assert doctor.inspect_engine("ctranslate2").fault == "not installed"


def test_broken_engines_do_not_hide_the_rest(
    fake_modules: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake_modules / "llama_cpp.py").write_text("raise OSError('wrong ELF class')")
    (fake_modules / "ctranslate2.py").write_text("1 / 0")
    assert main(["doctor", str(tiny_bundle)]) == 1
    out, err = capsys.readouterr()
    assert "broken: OSError: wrong ELF class" in out
    assert "broken: ZeroDivisionError" in out
    assert "instruction sets" in out
    assert err.count("\n") == 1
    assert err.startswith("error: ctranslate2 is broken")
    assert "pip install --force-reinstall llama-cpp-python" in err


def test_the_probe_with_a_bundle(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny_bundle), "--json"]) == 0
    out, err = capsys.readouterr()
    report = msgspec.json.decode(out)
    assert err == ""
    assert report["engines"]["ctranslate2"]["version"]
    assert report["bundle"]["bundle"] == str(tiny_bundle)
    assert report["bundle"]["repacked weights"] in ("on", "off")
    assert report["cores"] >= 1
    assert set(report["missing_for_extras"]) == set(EXTRAS)


def test_advice_if_the_build_cannot_use_amx(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "read_cpu", lambda: Cpu("Xeon", ("amx_int8", "amx_tile", "avx2")))
    monkeypatch.setattr(doctor, "inspect_engine", lambda _: WORKING)
    slow = EngineSettings(extra_buffers=False, flash_attention=True, note="the fast settings crashed")
    monkeypatch.setattr(doctor, "engine_settings", lambda *_, use_cache: slow)
    assert main(["doctor", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    assert "the fast settings crashed" in out
    assert doctor.AMX_BUILD in out.splitlines(), "the command must stand on a line of its own to be copied"

    fast = EngineSettings(extra_buffers=True, flash_attention=True, note="all is well")
    monkeypatch.setattr(doctor, "engine_settings", lambda *_, use_cache: fast)
    assert not any(doctor.AMX_BUILD in advice for advice in doctor.diagnose(Bundle.open(tiny_bundle)).advice)


def test_an_llm_that_runs_with_no_settings_is_a_fault(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, use_cache: bool) -> EngineSettings:
        assert not use_cache
        raise EngineError("llm.gguf: llama.cpp does not work here")

    monkeypatch.setattr(doctor, "inspect_engine", lambda _: WORKING)
    monkeypatch.setattr(doctor, "engine_settings", refuse)
    assert doctor.diagnose(Bundle.open(tiny_bundle)).faults == ("llm.gguf: llama.cpp does not work here",)


def test_gpus_and_builds_for_them(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "inspect_engine", lambda _: WORKING)
    monkeypatch.setattr(doctor, "detect_gpus", lambda: GpuInventory())
    monkeypatch.setattr(doctor, "gpu_backends", lambda: [])
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("GPUs of llama.cpp" in line and line.endswith("built for the CPU only; finds none") for line in lines)
    assert any("GPUs of CTranslate2" in line and "finds no CUDA device" in line for line in lines)
    for setting in ("-DGGML_CUDA=on", "-DGGML_METAL=on", "-DGGML_VULKAN=on"):
        (line,) = (line for line in lines if setting in line)
        assert line.startswith(f'CMAKE_ARGS="{setting}" pip install --force-reinstall --no-cache-dir')
        assert line.endswith("--no-binary llama-cpp-python llama-cpp-python")

    inventory = GpuInventory(llama=("CUDA0 (NVIDIA T4)",), cuda=1, compute_types=("float32", "int8"))
    monkeypatch.setattr(doctor, "detect_gpus", lambda: inventory)
    monkeypatch.setattr(doctor, "gpu_backends", lambda: ["CUDA"])
    report = doctor.diagnose()
    assert report.advice == ()
    assert report.gpu == {
        "llama.cpp": "built for CUDA; finds CUDA0 (NVIDIA T4)",
        "CTranslate2": "1 with CUDA, compute types float32, int8",
    }
    monkeypatch.setattr(
        doctor, "detect_gpus", lambda: GpuInventory(fault="looking for a GPU ended the process (SIGSEGV)")
    )
    assert doctor.diagnose().gpu["llama.cpp"] == "unknown: looking for a GPU ended the process (SIGSEGV)"


def test_a_bundle_on_a_gpu(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "inspect_engine", lambda _: WORKING)
    plans: list[object] = []
    settings = EngineSettings(extra_buffers=True, flash_attention=True, note="3 layers on a T4 work", gpu_layers=3)

    def plan(bundle: Bundle, layers: object, *, use_cache: bool) -> Offload:
        plans.append((bundle.path, layers, use_cache))
        return Offload("cuda", settings, (("wheel", "it is round"),))

    monkeypatch.setattr(doctor, "plan_offload", plan)
    assert doctor.diagnose(Bundle.open(tiny_bundle)).bundle.keys() >= {"reason"}
    assert plans == []
    assert main(["doctor", str(tiny_bundle), "--gpu-layers", "all", "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert (
        report["bundle"]["GPU"]
        == "3 layers on a T4 work; the encoder runs on CUDA; the wheel runs on the CPU: it is round"
    )
    assert plans == [(tiny_bundle, "all", False)]
    assert main(["doctor", "--gpu-layers", "all"]) == 2
    assert "name its BUNDLE" in capsys.readouterr().err


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from mtllm_edge.diagnostics.doctor import diagnose; diagnose(); "
        "print(*{'torch', 'transformers', 'llama_cpp', 'ctranslate2'} & set(sys.modules))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == []
