"""Servers in threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mtllm_edge import Bundle, Prediction
from mtllm_edge.inputs import Input
from mtllm_edge.server.app import create_app
from mtllm_edge.server.auth import AccessPolicy
from mtllm_edge.server.limits import Limits
from mtllm_edge.server.metrics import Metrics
from mtllm_edge.server.run import listen, make_server, url_of
from mtllm_edge.server.worker import Model, Worker

TIMEOUT_S = 30
"""Timeout of every wait."""


class BlockingModel:
    """Model that waits for `release` before it returns; the label of a text is the text."""

    def __init__(self) -> None:
        self.release, self.started = threading.Event(), threading.Event()
        self.calls: list[list[Any]] = []

    def encode(self, texts: Sequence[Input], _task: str | None, _language: object) -> tuple[Sequence[Input], list[int]]:
        return texts, [1] * len(texts)

    def compute(self, _task: str | None, items: list[Any]) -> list[Prediction]:
        self.calls.append(items)
        self.started.set()
        assert self.release.wait(TIMEOUT_S)
        if "poison" in items:
            raise RuntimeError("/a/secret/place")
        return [Prediction(label=text, probabilities={text: 1.0}, tokens=1, truncated=False) for text in items]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class RunningServer:
    url: str
    worker: Worker
    client: httpx2.Client

    def post(self, path: str, body: object, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)


Serve = Callable[..., AbstractContextManager[RunningServer]]


@contextmanager
def run_server(
    folder: Path,
    *,
    limits: Limits | None = None,
    policy: AccessPolicy | None = None,
    load: Callable[[], Any] | None = None,
    wait: bool = True,
) -> Iterator[RunningServer]:
    """Run a server with the model that `load` returns, by default the bundle's."""
    bundle, limits, metrics = Bundle.open(folder), limits or Limits(), Metrics()
    worker = Worker(load or (lambda: Model(bundle)), limits, observe=metrics.observe_batch)
    listener = listen("127.0.0.1", 0)
    app = create_app(bundle, worker, limits, policy or AccessPolicy(), metrics, alias=folder.name)
    uvicorn_server = make_server(app, grace_s=TIMEOUT_S)
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
    worker.start()
    thread.start()
    url = url_of(listener)
    client = httpx2.Client(base_url=url, timeout=TIMEOUT_S, verify=False)  # loads no certificates
    server = RunningServer(url, worker, client)
    try:
        if wait:
            wait_until(lambda: server.get("/healthz").status_code == 200)
        yield server
    finally:
        client.close()
        uvicorn_server.should_exit = True
        thread.join(TIMEOUT_S)
        assert worker.stop(TIMEOUT_S)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="session")
def server(tiny_bundle: Path) -> Iterator[RunningServer]:
    """Server of the tiny bundle, shared by all tests."""
    with run_server(tiny_bundle) as server:
        yield server


@pytest.fixture
def blocking_server(tiny_bundle: Path) -> Iterator[tuple[RunningServer, BlockingModel]]:
    """Server of a `BlockingModel` with room for four texts in the queue and two in a batch."""
    model = BlockingModel()
    limits = Limits(max_texts=4, max_queued_texts=4, batch_tokens=2)
    with run_server(tiny_bundle, limits=limits, load=lambda: model) as server:
        yield server, model
        model.release.set()
