"""`mtllm-edge serve` as a process: log lines, signals, exit codes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from mtllm_edge import Embedder
from mtllm_edge.errors import EngineError
from tests.fixtures.cli_result import Run
from tests.runtime.server.conftest import TIMEOUT_S, wait_until

SLOW = """
import sys, time
from mtllm_edge.server.worker import Model
compute = Model.compute
def slow(self, task, items):
    print("computing", file=sys.stderr, flush=True)
    time.sleep({seconds})
    return compute(self, task, items)
Model.compute = slow
"""
MAIN = "import sys; from mtllm_edge.cli.main import main; sys.exit(main())"
BODY = {"texts": ["the team is good"], "task": "topic"}


class Process:
    """Running `mtllm-edge serve`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def url(self) -> str:
        wait_until(lambda: "ready after" in self.log)
        match = re.search(r"serving tiny at (http://\S+) \(Ctrl-C stops\); loading the model\n", self.log)
        assert match, self.log
        return match[1]

    def end(self, number: int) -> int:
        self._process.send_signal(number)
        return self._process.wait(TIMEOUT_S)


@contextmanager
def start_server(folder: Path, *arguments: object, patch: str = "") -> Iterator[Process]:
    log = folder / "stderr.txt"
    command = [sys.executable, "-c", patch + MAIN, "serve", *map(str, arguments)]
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, text=True) as process:
        try:
            yield Process(process, log)
        finally:
            process.kill()


def test_running_requests_are_finished_after_sigterm(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        start_server(tmp_path, tiny_bundle, "--port", 0, patch=SLOW.format(seconds=1)) as process,
        ThreadPoolExecutor(1) as threads,
    ):
        url = process.url()
        call = threads.submit(httpx2.post, f"{url}/classify", json=BODY, timeout=TIMEOUT_S)
        wait_until(lambda: "computing" in process.log)
        assert process.end(signal.SIGTERM) == 0
        response = call.result(TIMEOUT_S)
        assert response.status_code == 200
        assert response.json()["predictions"][0]["label"] in {"science", "sports", "travel"}
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/healthz")
    assert process.log.endswith("computing\nstopped\n")


def test_the_grace_period_bounds_the_shutdown(tiny_bundle: Path, tmp_path: Path) -> None:
    patch = SLOW.format(seconds=10 * TIMEOUT_S) + "import mtllm_edge.server.run as run; run._LAST_BATCH_S = 0.1\n"
    with (
        start_server(tmp_path, tiny_bundle, "--port", 0, "--grace", 1, patch=patch) as process,
        ThreadPoolExecutor(1) as threads,
    ):
        call = threads.submit(httpx2.post, f"{process.url()}/classify", json=BODY, timeout=TIMEOUT_S)
        wait_until(lambda: "computing" in process.log)
        assert process.end(signal.SIGINT) == 0
        response = call.result(TIMEOUT_S)
        assert (response.status_code, response.json()["error"]["message"]) == (503, "the server is shutting down")
    assert process.log.endswith("stopped\n")
    assert "Traceback" not in process.log


def test_a_loading_error_ends_the_server(run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise EngineError("no engine here")

    monkeypatch.setattr(Embedder, "load", load)
    result = run("serve", tiny_bundle, "--port", 0)
    assert result.code == 1
    assert result.err.endswith("error: no engine here\n")


def test_a_port_in_use(run: Run, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run("serve", tiny_bundle, "--port", port)
    assert result.code == 2
    assert result.err == (
        f"error: cannot listen on port {port} of 127.0.0.1: it is in use; choose another --port, or 0 for a free one\n"
    )


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (("--host", "0.0.0.0"), "", "other computers may reach 0.0.0.0, so a token is required; write one to a file"),
        (("--host", "::"), "", "other computers may reach ::, so a token is required"),
        (("--host", "0.0.0.0"), "short", "the token in MTLLM_EDGE_TOKEN must have at least 16 ASCII"),
        (("--host", "0.0.0.0"), "a token with blanks in it", "the token in MTLLM_EDGE_TOKEN must have"),
        (("--token-file", "absent"), "", "cannot read the token from absent"),
        (("--token-file", "empty"), "long-enough-but-the-file-wins", "the token in empty must have at least 16"),
        (("--host", "192.0.2.1"), "long-enough-to-be-one", "cannot listen on port 0 of 192.0.2.1: "),
        (("--max-queue", "10"), "", "a request may have 1024 texts, but the queue holds 10; raise --max-queue"),
    ],
)
def test_wrong_options_are_one_line(
    run: Run,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    variable: str,
    message: str,
) -> None:
    monkeypatch.setenv("MTLLM_EDGE_TOKEN", variable)
    (tmp_path / "empty").touch()
    result = run("serve", tiny_bundle, "--port", 0, *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}")
    assert result.err.count("\n") == 1


def test_a_damaged_bundle_is_refused_before_the_server_listens(run: Run, fresh_bundle: Path) -> None:
    shutil.rmtree(fresh_bundle / "encoder")
    result = run("serve", fresh_bundle, "--port", 0)
    assert result.code == 1
    assert "encoder/model.bin: missing" in result.err
    assert "serving" not in result.err


def test_a_missing_extra_is_named(tiny_bundle: Path) -> None:
    code = "import sys; sys.modules['fastapi'] = None; sys.modules['uvicorn'] = None; " + MAIN
    command = [sys.executable, "-c", code, "serve", str(tiny_bundle)]
    child = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=TIMEOUT_S, check=False)
    assert child.returncode == 2
    assert child.stderr == (
        "error: this command needs the extra [serve] (fastapi, uvicorn not installed); "
        "run: pip install 'mtllm-edge[serve]'\n"
    )
