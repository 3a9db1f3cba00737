"""Fixtures for the tests of the runtime."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mtllm_edge.cli.main import main
from mtllm_edge.jobs import runner
from tests.fixtures.cli_result import Result, Run
from tests.fixtures.interruption import Stop


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store a chunk in the journal after every eight texts."""
    monkeypatch.setattr(runner, "MIN_TEXTS", 8)
    monkeypatch.setattr(runner, "MAX_TEXTS", 8)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> Stop:
    """Interrupt the classifier after some calls of eight texts each."""
    return Stop(monkeypatch)
