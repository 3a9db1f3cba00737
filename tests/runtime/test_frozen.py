"""A frozen application, simulated by a script, runs the child processes itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtllm_edge import frozen
from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.cache import CACHE_VARIABLE
from tests.fixtures.tiny_onnx import add_onnx_form

APPLICATION = """
import json, sys
from pathlib import Path
sys.frozen, sys.executable = True, {program!r}
with Path({starts!r}).open("a") as file:
    print(json.dumps(sys.argv[1:2]), file=file)
{first_act}
from mtllm_edge import Bundle
from mtllm_edge.diagnostics.doctor import inspect_engine
from mtllm_edge.backends.probing.llm_backend import choose_backend
from mtllm_edge.backends.probing.llama_cpp import engine_settings
from mtllm_edge.diagnostics.deep_verify import run_in_child
bundle = Bundle.open(sys.argv[1])
report = {{
    "settings": engine_settings(bundle.path / bundle.manifest.llm.file, bundle.manifest.llm).note,
    "backend": choose_backend(bundle, 1).note,
    "engine": inspect_engine("ctranslate2").build,
    "arguments": sys.argv[1:],
}}
if {tries}:
    report["texts"] = run_in_child(bundle.path).texts
print(json.dumps(report))
"""
FREEZE_SUPPORT = "from mtllm_edge.frozen import freeze_support; freeze_support()"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the application is started by a shell script")


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A program without a Python command line; it runs `main.py` in its folder."""
    program = tmp_path / "application"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/main.py" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def start(application: Path, bundle: Path, *, first_act: str, tries: bool) -> tuple[dict[str, object], list[list[str]]]:
    """Return the application's report on a bundle, and the first arguments of each of its starts."""
    starts = application.with_name("starts.jsonl")
    code = APPLICATION.format(program=str(application), starts=str(starts), first_act=first_act, tries=tries)
    application.with_name("main.py").write_text(code, encoding="utf-8")
    paths = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": paths, CACHE_VARIABLE: str(application.with_name("cache"))}
    child = subprocess.run([application, bundle], env=environment, capture_output=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr.decode()
    lines = starts.read_text(encoding="utf-8").splitlines()
    return json.loads(child.stdout), [json.loads(line) for line in lines]


def test_the_application_runs_its_child_processes(application: Path, fresh_bundle: Path) -> None:
    bundle = add_onnx_form(fresh_bundle)
    report, starts = start(application, bundle, first_act=FREEZE_SUPPORT, tries=True)
    assert str(report["settings"]).startswith("tried here: the ")
    assert str(report["backend"]).startswith("tried here: ")
    assert report["texts"] == 3
    assert report["arguments"] == [str(bundle)]
    assert starts[0] == [str(bundle)]
    assert {argument for (argument,) in starts[1:]} == {child_process.FROZEN_ARGUMENT}


def test_without_freeze_support_no_child_is_started(application: Path, fresh_bundle: Path) -> None:
    report, starts = start(application, add_onnx_form(fresh_bundle), first_act="", tries=False)
    assert str(report["settings"]).startswith("not tried: there is no Python to start (a frozen application calls")
    assert str(report["backend"]).startswith("not measured: there is no Python to start")
    assert report["engine"] == "unknown: a frozen application has no Python to start"
    assert len(starts) == 1


def test_freeze_support_ignores_an_ordinary_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", child_process.FROZEN_ARGUMENT, "mtllm_edge.diagnostics.deep_verify"])
    frozen.freeze_support()
    assert child_process.command("mtllm_edge.diagnostics.deep_verify", "a") == [
        sys.executable,
        "-m",
        "mtllm_edge.diagnostics.deep_verify",
        "a",
    ]


def test_other_modules_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "argv", ["application", child_process.FROZEN_ARGUMENT, "json.tool"])
    monkeypatch.setattr(
        child_process, "_registered_applications", set()
    )  # otherwise pytest's Python would stay registered
    with pytest.raises(KeyError, match=r"json\.tool"):
        frozen.freeze_support()
