"""Python processes of the tests' own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def imported_by(module: str) -> set[str]:
    """Top-level packages that importing a module imports."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import {module}; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(child.stdout.split())


def run_python(
    code: str, *arguments: str, customize: str = "", folder: Path, timeout: int = 120
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a child that sees the same packages.

    Args:
        code: The program.
        arguments: Its command line.
        customize: Run first in the child and in every Python that it starts in its turn.
        folder: A folder of the test's own for it.
        timeout: Seconds.
    """
    (folder / "sitecustomize.py").write_text(customize, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
