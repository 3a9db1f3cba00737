"""Child processes that run a native engine where a crash does no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from mtllm_edge.backends.probing import child_process
from mtllm_edge.bundle import manifest

SECONDS = 180.0
"""Longest time for one child: an 8 B model read from a slow disk fits."""
FROZEN_ARGUMENT = "--mtllm-edge-child"
"""First argument of a frozen application that is to run a module instead of itself."""
_PACKAGE_PARENT = Path(__file__).resolve().parents[3]
_registered_applications: set[str] = set()


def is_frozen() -> bool:
    """Whether `sys.executable` is an application with Python inside, and no Python (PyInstaller, cx_Freeze ...)."""
    return bool(getattr(sys, "frozen", False))


def register_frozen_application() -> None:
    """Say that this frozen application knows `FROZEN_ARGUMENT`: others would open a second window if started again."""
    _registered_applications.add(sys.executable)


def is_available() -> bool:
    """Whether there is something to start: a Python, or a frozen application that stands in for one."""
    return sys.executable in _registered_applications if is_frozen() else bool(sys.executable)


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this package."""
    return [sys.executable, FROZEN_ARGUMENT if is_frozen() else "-m", module, *arguments]


def run(command: Sequence[str], seconds: float | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a child that sees the same packages, and keep what it writes.

    Args:
        command: Its command line.
        seconds: Longest time for it; None is `SECONDS`.

    Raises:
        subprocess.TimeoutExpired: It took longer.
        OSError: It could not be started.
    """
    # -m puts the working folder first on the child's path, so it must not be the user's; and the parent may have
    # found this package through a path that only it has. A frozen application has all of it inside, or in an archive.
    paths = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        command,
        cwd=None if is_frozen() else _PACKAGE_PARENT,
        # ggml's last act would be to start a debugger on itself, which takes half a minute
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "GGML_NO_BACKTRACE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS if seconds is None else seconds,
        check=False,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows would show a console for a moment
    )


def disable_core_dumps() -> None:
    """For children that may die: their memory is not worth gigabytes of disk."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def llm_arguments(path: Path, llm: manifest.LlmSpec) -> tuple[str, str]:
    """An LLM on a child's command line: its file, and the manifest's word on it as JSON."""
    return str(path.resolve()), msgspec.json.encode(llm).decode()


PYTHON_EXIT_CODES = (1, 2)  # Python's own, for uncaught exceptions and bad options: no engine dies with them
_Answer = TypeVar("_Answer")


UNAVAILABLE = "there is no Python to start (a frozen application calls mtllm_edge.frozen.freeze_support first)"


class ChildStartError(Exception):
    """This process cannot start a Python that has this package: a sandbox, or Python inside another program."""


@dataclass(frozen=True)
class Failure:
    """What became of a child that was to compute something."""

    reason: str
    """The end of a sentence."""
    error: str | None = None
    """The child's own words, where it lived to tell: the fault is then in the file more likely than in the settings."""


def run_child(command: list[str], kind: type[_Answer], seconds: float | None = None) -> _Answer | Failure:
    """What a child says in the last line of its output, or what became of it.

    Raises:
        ChildStartError: None could be started.
    """
    try:
        child = child_process.run(command, seconds)
    except subprocess.TimeoutExpired:
        return Failure(f"gave no answer in {child_process.SECONDS if seconds is None else seconds:g} s")
    except OSError as error:
        raise ChildStartError(f"no child process could be started ({error.strerror})") from None
    if child.returncode in PYTHON_EXIT_CODES:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ChildStartError(f"the child process could not run ({''.join(last)})")
    if child.returncode != 0:
        return Failure(f"ended the process ({exit_reason(child.returncode)})")
    try:
        return msgspec.json.decode(child.stdout.splitlines()[-1], type=kind)
    except (IndexError, msgspec.DecodeError, UnicodeDecodeError):
        return Failure("gave an unreadable answer")


def exit_reason(code: int) -> str:
    """A process's return code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
