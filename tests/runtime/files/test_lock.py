"""Concurrent writers of a bundle wait for each other, and no change is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mtllm_edge import Bundle
from mtllm_edge.errors import UsageError
from mtllm_edge.files import lock
from mtllm_edge.files.lock import folder_lock
from mtllm_edge.tasks.head import Head
from mtllm_edge.tasks.store import add_task, remove_task
from tests.fixtures.cli_result import Run
from tests.fixtures.tiny_bundle import N_EMBD
from tests.runtime.tasks.test_store import save_head

TIMES = 10
ADDS = """
import sys, time
from pathlib import Path
import numpy as np
from mtllm_edge import Bundle
from mtllm_edge.tasks.head import Head
from mtllm_edge.tasks.store import add_task

root, name, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
bundle = Bundle.open(root)
(root.parent / f"{name}.ready").touch()
while not (root.parent / "go").exists():
    time.sleep(0.001)
for number in range(times):
    head = Head("sequence", ("a", "b"), np.full((2, 32), number, np.float32), None, 1.0)
    add_task(bundle, f"{name}{number}", head)
"""
HOLDS = """
import sys, time
from pathlib import Path
from mtllm_edge.files.lock import folder_lock

with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def head(value: float = 1.0) -> Head:
    return Head("sequence", ("a", "b"), np.full((2, N_EMBD), value, np.float32), None, 1.0)


def test_tasks_of_two_processes_are_all_kept(fresh_bundle: Path) -> None:
    writers = {name: start(ADDS, fresh_bundle, name, TIMES) for name in ("one", "two")}
    deadline = time.monotonic() + 60
    while not all((fresh_bundle.parent / f"{name}.ready").exists() for name in writers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (fresh_bundle.parent / "go").touch()
    for writer in writers.values():
        _, complaint = writer.communicate(timeout=60)
        assert writer.returncode == 0, complaint
    bundle = Bundle.open(fresh_bundle)
    bundle.verify()
    expected = {"topic", "sentiment"} | {f"{name}{number}" for name in writers for number in range(TIMES)}
    assert set(bundle.manifest.tasks) == expected
    for name in writers:
        for number in range(TIMES):
            task = bundle.manifest.tasks[f"{name}{number}"]
            assert (Head.load(fresh_bundle, task).weight_CE == number).all()
    assert not (fresh_bundle / ".lock").exists()


def test_two_threads_add_and_remove_tasks(fresh_bundle: Path) -> None:
    bundle = Bundle.open(fresh_bundle)
    for number in range(6):
        add_task(bundle, f"old{number}", head())
    errors: list[BaseException] = []

    def change(*names: str) -> None:
        try:
            for name in names:
                remove_task(bundle, name) if name.startswith("old") else add_task(bundle, name, head())
        except BaseException as error:
            errors.append(error)

    names = [[f"{kind}{number}" for number in range(6)] for kind in ("old", "new")]
    threads = [threading.Thread(target=change, args=thread_names) for thread_names in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    Bundle.open(fresh_bundle).verify()
    assert set(Bundle.open(fresh_bundle).manifest.tasks) == {"topic", "sentiment", *names[1]}


def test_only_one_writer_adds_a_name(fresh_bundle: Path) -> None:
    """The second writer gets an error, although the name was free when it opened the bundle."""
    bundle = Bundle.open(fresh_bundle)
    with folder_lock(fresh_bundle):
        thread = threading.Thread(target=lambda: outcome.append(_refusal(bundle)))
        outcome: list[str] = []
        thread.start()
        time.sleep(0.05)
        assert outcome == []  # the thread waits
    thread.join()
    assert outcome == [""]
    assert "has a task 'mood' already" in _refusal(bundle)


def _refusal(bundle: Bundle) -> str:
    try:
        add_task(bundle, "mood", head())
    except UsageError as error:
        return str(error)
    return ""


def test_a_lock_times_out(run: Run, fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_head(Path("head.safetensors"))
    monkeypatch.setattr(lock, "SECONDS", 0.1)
    holder = start(HOLDS, fresh_bundle)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = (fresh_bundle / "bundle.json").read_bytes()
        result = run("task", "add", fresh_bundle, "mood", "--head", "head.safetensors", "--label", "a", "--label", "b")
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert f"{fresh_bundle} has been locked by another process for 0.1 s; try again later" in result.err
        assert (fresh_bundle / "bundle.json").read_bytes() == before
    finally:
        holder.kill()
        holder.communicate()
    result = run("task", "add", fresh_bundle, "mood", "--head", "head.safetensors", "--label", "a", "--label", "b")
    assert result.code == 0, result.err  # the lock of a killed process is released
    Bundle.open(fresh_bundle).verify()


def test_the_lock_is_released_after_an_error(fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SECONDS", 0.1)
    with pytest.raises(UsageError, match="has no task 'mood'"):
        remove_task(Bundle.open(fresh_bundle), "mood")
    with pytest.raises(KeyboardInterrupt), folder_lock(fresh_bundle):
        raise KeyboardInterrupt
    with folder_lock(fresh_bundle), pytest.raises(UsageError, match="locked"), folder_lock(fresh_bundle):
        pass
    assert not (fresh_bundle / ".lock").exists()
