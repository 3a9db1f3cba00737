"""Run the blocks of a page in a folder: `mtllm-edge` in this process, other commands by bash.

Training and measuring take hours with the settings of a page, so the test appends cheaper options: click uses the last
value of a repeated option.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mtllm_edge.cli.main import main
from tests.docs.pages import NOT_RUN, Block

PROGRAM = "mtllm-edge"
_SMALL = ("--batch-size", "4", "--dtype", "float32", "--base-dtype", "float32", "--device", "cpu")
AFFORDABLE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train", "adapt"): ("--steps", "2", "--lora-rank", "2", "--max-tokens", "64", *_SMALL),
    ("train", "finetune"): ("--epochs", "1", "--lora-rank", "2", *_SMALL),
    ("train", "distill"): ("--epochs", "1", *_SMALL),
    ("eval",): ("--resamples", "100", "--device", "cpu"),
    ("bench",): ("--repeats", "1", "--threads", "1"),
}
"""Command -> what a test adds to it."""
_PATIENCE = 300
"""Seconds until a child counts as hung."""
_SHELL = set("|<>;&$`")


class Server:
    """Server of a page, shared by its blocks, on a free port instead of the page's."""

    SHOWN = "127.0.0.1:8000"

    def __init__(self) -> None:
        self._address = self.SHOWN
        self._child: subprocess.Popen[bytes] | None = None

    def moved(self, text: str) -> str:
        """Replace the server's address in a block."""
        return text.replace(self.SHOWN, self._address).replace("localhost:8000", self._address)

    def start(self, words: list[str]) -> None:
        """Run `mtllm-edge serve`, and wait until the model is loaded."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"127.0.0.1:{port}"
        program = [sys.executable, "-m", "mtllm_edge"]
        self._child = subprocess.Popen([*program, *words, "--port", str(port)])
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._child.poll() is None:
            with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"http://{self._address}/healthz"):
                return
            time.sleep(0.1)
        pytest.fail(f"{PROGRAM} {shlex.join(words)} did not get ready")

    def stop(self) -> None:
        """Stop the server with SIGINT."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait(_PATIENCE)


def run_blocks(
    blocks: Iterable[Block],
    capsys: pytest.CaptureFixture[str],
    instead: Callable[[list[str]], bool] = lambda _: False,
) -> None:
    """Run the blocks of one page in the working folder; Python blocks share their names.

    A command is skipped if `instead` handles it and returns True.
    """
    server = Server()
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        names: dict[str, Any] = {"__name__": "page"}
        error_output = ""
        for block in blocks:
            if block.language == "text" and error_output and block.text.startswith("error:"):
                assert block.text.split() == error_output.split(), f"{block.place} shows another error"
            error_output = ""
            if block.is_run and block.language == "python":
                exec(compile(server.moved(block.text), block.place, "exec"), names)
                capsys.readouterr()
            elif block.is_run:
                error_output = _run_commands(block, server, capsys, instead)


def _run_commands(
    block: Block, server: Server, capsys: pytest.CaptureFixture[str], instead: Callable[[list[str]], bool]
) -> str:
    """Run a shell block, and return stderr of its last command."""
    commands = block.commands()
    assert commands, f"{block.place} holds no command"
    error_output = ""
    for number, command in enumerate(commands, 1):
        words = split(command)
        if words[:2] == [PROGRAM, "serve"]:
            server.start(words[1:])
            continue
        if instead(words):
            continue
        assert not command.startswith(NOT_RUN), f"{block.place}: mark the block as not run, or keep it from {command}"
        expected = block.exit_code if number == len(commands) else 0
        code, out, error_output = run(server.moved(command), capsys)
        assert code == expected, f"{block.place}: {command}\n{out}\n{error_output}"
    return error_output


def run(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run one command, and return exit code, stdout and stderr."""
    words = split(command)
    if words[0] == PROGRAM and not _SHELL & set("".join(_unquoted(command))):
        code = main([*words[1:], *_affordable(words[1:])])
        return code, *capsys.readouterr()
    if words[0] == "python":
        return _run_script(words[1:]), *capsys.readouterr()
    # As in an activated environment: `python` and `mtllm-edge` are those of the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    child = subprocess.run(
        ["bash", "-o", "pipefail", "-ec", command],
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    return child.returncode, child.stdout, child.stderr


def _run_script(words: list[str]) -> int:
    """Run a script in this process, which has imported torch already, and return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as exit:
            return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    return 0


def split(command: str) -> list[str]:
    """Split a command into words, like a shell."""
    return shlex.split(command, comments=True)


def _unquoted(command: str) -> list[str]:
    """Return the parts of a command outside of quotes and comments."""
    words = shlex.shlex(command, posix=False, punctuation_chars=True)
    words.commenters = "#"
    return [word for word in words if not word.startswith(('"', "'"))]


def _affordable(words: list[str]) -> tuple[str, ...]:
    """Return the options that are appended to a command, none if it shows its help."""
    if "--help" in words:
        return ()
    return next((options for start, options in AFFORDABLE.items() if tuple(words[: len(start)]) == start), ())
