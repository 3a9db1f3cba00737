"""Runs the blocks of a page in a folder: `mtllm-edge` in this process, all else by bash.

Training and measuring take hours with the settings that a page shows, so the last word is the test's: click takes the
last of an option that is given twice.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mtllm_edge.cli import main
from tests.docs.pages import Block

PROGRAM = "mtllm-edge"
_SMALL = ("--batch-size", "4", "--dtype", "float32", "--base-dtype", "float32", "--device", "cpu")
AFFORDABLE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train", "adapt"): ("--steps", "2", "--lora-rank", "2", *_SMALL),
    ("train", "finetune"): ("--epochs", "1", "--lora-rank", "2", *_SMALL),
    ("train", "distill"): ("--epochs", "1", *_SMALL),
    ("eval",): ("--resamples", "100", "--device", "cpu"),
    ("bench",): ("--repeats", "1", "--threads", "1"),
}
"""Command -> what a test adds to it."""
_SHELL = set("|<>;&$`")


def run_blocks(blocks: Iterable[Block], capsys: pytest.CaptureFixture[str]) -> None:
    """Run the blocks of one page in the working folder; names of the Python blocks live on to the next."""
    names: dict[str, Any] = {"__name__": "page"}
    said = ""
    for block in blocks:
        if block.language == "text" and said and block.text.startswith("error:"):
            assert block.text.split() == said.split(), f"{block.place} shows another error"
        said = ""
        if not block.is_run:
            continue
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
            capsys.readouterr()
            continue
        commands = block.commands()
        assert commands, f"{block.place} holds no command"
        for number, command in enumerate(commands, 1):
            expected = block.exit_code if number == len(commands) else 0
            code, out, said = run(command, capsys)
            assert code == expected, f"{block.place}: {command}\n{out}\n{said}"


def run(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run one line; returns exit code, stdout, stderr."""
    words = split(command)
    if words[0] == PROGRAM and not _SHELL & set("".join(_unquoted(command))):
        code = main([*words[1:], *_affordable(words[1:])])
        return code, *capsys.readouterr()
    # As in an activated environment: `python` and `mtllm-edge` are those of this one.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    child = subprocess.run(
        ["bash", "-o", "pipefail", "-ec", command],
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return child.returncode, child.stdout, child.stderr


def split(command: str) -> list[str]:
    """The words of a command, as a shell has them."""
    return shlex.split(command, comments=True)


def _unquoted(command: str) -> list[str]:
    """The pieces of a command outside of quotes and comments."""
    words = shlex.shlex(command, posix=False, punctuation_chars=True)
    words.commenters = "#"
    return [word for word in words if not word.startswith(('"', "'"))]


def _affordable(words: list[str]) -> tuple[str, ...]:
    """What is added to a command, unless it only asks for help."""
    if "--help" in words:
        return ()
    return next((more for start, more in AFFORDABLE.items() if tuple(words[: len(start)]) == start), ())
