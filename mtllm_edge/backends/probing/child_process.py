"""Child processes that run native engines, so that a crash does not end the caller's process."""

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

from mtllm_edge.safe_text import one_line

TIMEOUT_SECONDS = 180.0
"""Time limit of a child: enough for an 8 B model on a slow disk."""
FROZEN_ARGUMENT = "--mtllm-edge-child"
"""First argument of a frozen application that is to run a module of this package."""
PYTHON_EXIT_CODES = (1, 2)
"""Python's own, for uncaught exceptions and bad options; crashing engines have others."""
UNAVAILABLE = "there is no Python to start (a frozen application calls mtllm_edge.frozen.freeze_support first)"
_PACKAGE_PARENT = Path(__file__).resolve().parents[3]
_registered_applications: set[str] = set()
_Result = TypeVar("_Result")


class ChildStartError(Exception):
    """No Python with this package can be started: in a sandbox, or with Python embedded in another program."""


@dataclass(frozen=True)
class Failure:
    """Failure of a child process."""

    reason: str
    """The end of a sentence."""
    error: str | None = None
    """Error reported by the engine, if the child did not crash: its cause is rather the file than the settings."""


def is_frozen() -> bool:
    """Return whether `sys.executable` is an application with embedded Python (PyInstaller, cx_Freeze ...)."""
    return bool(getattr(sys, "frozen", False))


def register_frozen_application() -> None:
    """Register this frozen application as handling `FROZEN_ARGUMENT`; others would open a second window."""
    _registered_applications.add(sys.executable)


def is_available() -> bool:
    """Return whether child processes can be started, by Python or a registered frozen application."""
    return sys.executable in _registered_applications if is_frozen() else bool(sys.executable)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package."""
    return [sys.executable, FROZEN_ARGUMENT if is_frozen() else "-m", module, *arguments]


def run(command: Sequence[str], seconds: float | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a child with the same packages, for at most `TIMEOUT_SECONDS` or `seconds`, and capture its output.

    Raises:
        subprocess.TimeoutExpired: The time limit was exceeded.
        OSError: The child could not be started.
    """
    # -m puts the working folder first on the child's path, so it must not be the user's; and the parent may have
    # found this package through a path that only it has. A frozen application contains the package.
    paths = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        command,
        cwd=None if is_frozen() else _PACKAGE_PARENT,
        # a crashing ggml would otherwise start a debugger on itself, which takes half a minute
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "GGML_NO_BACKTRACE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_SECONDS if seconds is None else seconds,
        check=False,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # no console window on Windows
    )


def run_child(command: list[str], kind: type[_Result], seconds: float | None = None) -> _Result | Failure:
    """Run a child, and decode the last line of its output, JSON of a type; ChildStartError if it cannot start."""
    try:
        child = run(command, seconds)
    except subprocess.TimeoutExpired:
        return Failure(f"gave no answer in {TIMEOUT_SECONDS if seconds is None else seconds:g} s")
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
    """Describe a process's return code: the signal's name, or the exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def disable_core_dumps() -> None:
    """Disable core dumps, gigabytes on disk, of this process."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def spec_arguments(path: Path, spec: msgspec.Struct) -> tuple[str, str]:
    """Return a model as arguments of a child's command line: its path, and its part of the manifest as JSON."""
    return str(path.resolve()), msgspec.json.encode(spec).decode()


def engine_error(error: Exception, path: str) -> str:
    """Return an engine's error without the path and advice that the parent adds again."""
    return one_line(error).removeprefix(f"{path}: ").removesuffix("; see `mtllm-edge doctor`")
