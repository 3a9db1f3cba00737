"""A frozen application stands in for the Python that it lacks: here one that is made of a script."""

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
told = {{
    "settings": engine_settings(bundle.path / bundle.manifest.llm.file, bundle.manifest.llm).note,
    "form": choose_backend(bundle, 1).note,
    "engine": inspect_engine("ctranslate2").build,
    "arguments": sys.argv[1:],
}}
if {tries}:
    told["texts"] = run_in_child(bundle.path).texts
print(json.dumps(told))
"""
FREEZE_SUPPORT = "from mtllm_edge.frozen import freeze_support; freeze_support()"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the application is started by a shell script")


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A program that takes arguments and is no Python; what it does lies in `main.py` beside it."""
    program = tmp_path / "application"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/main.py" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def start(application: Path, bundle: Path, *, first_act: str, tries: bool) -> tuple[dict[str, object], list[list[str]]]:
    """What the application says of a bundle, and the first arguments of all its starts."""
    starts = application.with_name("starts.jsonl")
    code = APPLICATION.format(program=str(application), starts=str(starts), first_act=first_act, tries=tries)
    application.with_name("main.py").write_text(code, encoding="utf-8")
    paths = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": paths, CACHE_VARIABLE: str(application.with_name("cache"))}
    child = subprocess.run([application, bundle], env=environment, capture_output=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr.decode()
    lines = starts.read_text(encoding="utf-8").splitlines()
    return json.loads(child.stdout), [json.loads(line) for line in lines]


def test_it_runs_its_own_children(application: Path, fresh_bundle: Path) -> None:
    bundle = add_onnx_form(fresh_bundle)
    told, starts = start(application, bundle, first_act=FREEZE_SUPPORT, tries=True)
    assert str(told["settings"]).startswith("tried here: the ")
    assert str(told["form"]).startswith("tried here: ")
    assert told["texts"] == 3
    assert told["arguments"] == [str(bundle)]
    assert starts[0] == [str(bundle)]
    assert {argument for (argument,) in starts[1:]} == {child_process.FROZEN_ARGUMENT}


def test_without_its_help_nothing_is_started(application: Path, fresh_bundle: Path) -> None:
    told, starts = start(application, add_onnx_form(fresh_bundle), first_act="", tries=False)
    assert str(told["settings"]).startswith("not tried: there is no Python to start (a frozen application calls")
    assert str(told["form"]).startswith("not measured: there is no Python to start")
    assert told["engine"] == "unknown: a frozen application has no Python to start"
    assert len(starts) == 1


def test_an_ordinary_python_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", child_process.FROZEN_ARGUMENT, "mtllm_edge.diagnostics.deep_verify"])
    frozen.freeze_support()
    assert child_process.command("mtllm_edge.diagnostics.deep_verify", "a") == [
        sys.executable,
        "-m",
        "mtllm_edge.diagnostics.deep_verify",
        "a",
    ]


def test_no_other_module_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "argv", ["application", child_process.FROZEN_ARGUMENT, "json.tool"])
    monkeypatch.setattr(child_process, "_registered_applications", set())  # pytest's Python would stay one of them
    with pytest.raises(KeyError, match=r"json\.tool"):
        frozen.freeze_support()
