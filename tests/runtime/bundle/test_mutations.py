"""A few hundred mutants of every format; `tests.tools.fuzz.run` tries ten thousands."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from mtllm_edge import Bundle
from mtllm_edge.errors import ModelError
from tests.fixtures import tiny_bundle as tiny
from tests.tools.fuzz.run import FORMATS, Runner, bundles, try_format

MUTANTS = 250
NATIVE_SECONDS = 1.0


@pytest.fixture(scope="module")
def bundle_folders() -> Iterator[dict[str, Path]]:
    with bundles() as folders:
        yield folders


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner((False, False))
    yield runner
    runner.close()


@pytest.mark.parametrize("name", FORMATS)
def test_no_mutant_crashes_the_process(name: str, bundle_folders: dict[str, Path], runner: Runner) -> None:
    tally = try_format(name, MUTANTS, bundle_folders, runner, seed=1, native_seconds=NATIVE_SECONDS)
    assert (tally.crashed, tally.hung, tally.python_errors, tally.digest_missed) == (0, 0, 0, 0), tally.examples
    assert tally.mutants == MUTANTS
    assert tally.refused_before_native_load > MUTANTS // 4
    assert tally.ran + tally.refused_by_engine > 0  # otherwise no engine was tried
    assert tally.digest_checked == (0 if name == "manifest" else MUTANTS)
    for folder in bundle_folders.values():
        Bundle.open(folder).verify()  # unchanged


def test_the_runner_detects_crashes(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner((False, False))
    assert runner.run(tiny_bundle) == ("ran", "")
    assert runner._child is not None
    os.kill(runner._child.pid, signal.SIGSTOP)
    monkeypatch.setattr("tests.tools.fuzz.run._PATIENCE", 1.0)
    assert runner.run(tiny_bundle)[0] == "hung"
    child = runner._start()
    os.kill(child.pid, signal.SIGSTOP)
    os.kill(child.pid, signal.SIGSEGV)
    os.kill(child.pid, signal.SIGCONT)
    assert runner.run(tiny_bundle)[0] == "crashed"
    runner.close()


_LOAD_UNCHECKED = """
import sys
from pathlib import Path
from mtllm_edge.backends.probing.child_process import disable_core_dumps
from mtllm_edge.backends.llms.llama_cpp import GgufLlm
from mtllm_edge.backends.probing.llama_cpp import EngineSettings
from tests.runtime.backends.test_llama_cpp import LLM, inputs
disable_core_dumps()
GgufLlm(Path(sys.argv[1]), LLM, settings=EngineSettings(False, False, ""), threads=1).pool(inputs())
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [("llama.expert_count", 100_000), ("llama.nextn_predict_layers", 3), ("llama.rope.scaling.type", "sideways")],
)
def test_files_that_crash_llama_cpp_are_refused(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: int | str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "hostile"))
    add = gguf.GGUFWriter.add_tokenizer_model

    def add_more(writer: gguf.GGUFWriter, model: str) -> None:
        add(writer, model)
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_model", add_more)
    tiny.write_llm(folder / "llm.gguf", tiny.llm_weights(np.random.default_rng(tiny.SEED)))
    tiny.write_manifest(folder)
    command = [sys.executable, "-c", _LOAD_UNCHECKED, str(folder / "llm.gguf")]
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    child = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert child.returncode == -signal.SIGABRT  # otherwise the check is unnecessary
    with pytest.raises(ModelError, match=rf"llm\.gguf: (holds the field '{key}'|{key} is '{value}', expected)"):
        Bundle.open(folder)


def test_names_of_variables_end_at_the_first_nul(fresh_bundle: Path) -> None:
    path = fresh_bundle / "encoder" / "model.bin"
    content = path.read_bytes()
    name = b"encoder/num_heads"
    assert struct.pack("<H", len(name) + 1) + name + b"\0" in content
    for other in (
        name + b"x",
        name[:-2] + b"\0s\0",
    ):  # the engine would read beyond the first name, and a part of the second
        path.write_bytes(content.replace(name + b"\0", other, 1))
        tiny.write_manifest(fresh_bundle)
        with pytest.raises(ModelError, match=r"model\.bin: a name that does not end at its NUL"):
            Bundle.open(fresh_bundle)
