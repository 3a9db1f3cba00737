"""Real servers in threads of this process."""

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
from mtllm_edge.server.auth import Door
from mtllm_edge.server.limits import Limits
from mtllm_edge.server.metrics import Metrics
from mtllm_edge.server.run import Address, listen, make_server, url_of
from mtllm_edge.server.worker import Engine, Model, Prepared

PATIENCE = 30
"""Seconds until a wait counts as a failure."""


class Held:
    """A model whose answers wait until they are let go; a label is its text."""

    def __init__(self) -> None:
        self.let_go, self.at_work = threading.Event(), threading.Event()
        self.calls: list[list[Any]] = []

    def prepare(self, texts: Sequence[Input], _task: str | None, _language: object) -> Prepared:
        return Prepared(texts, [1] * len(texts))

    def compute(self, _task: str | None, items: list[Any]) -> list[Prediction]:
        self.calls.append(items)
        self.at_work.set()
        assert self.let_go.wait(PATIENCE)
        if "poison" in items:
            raise RuntimeError("/a/secret/place")
        return [Prediction(label=text, probabilities={text: 1.0}, tokens=1, truncated=False) for text in items]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Served:
    url: str
    engine: Engine
    client: httpx2.Client

    def post(self, path: str, body: object, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)


Serve = Callable[..., AbstractContextManager[Served]]


@contextmanager
def serving(
    folder: Path,
    *,
    limits: Limits | None = None,
    door: Door | None = None,
    load: Callable[[], Any] | None = None,
    wait: bool = True,
) -> Iterator[Served]:
    """A running server, with the bundle's own model unless `load` makes another."""
    bundle, limits, metrics = Bundle.open(folder), limits or Limits(), Metrics()
    engine = Engine(load or (lambda: Model(bundle)), limits, observe=metrics.observe_batch)
    listener = listen(Address("127.0.0.1", 0))
    app = create_app(bundle, engine, limits, door or Door(None, True), metrics, served_as=folder.name)
    server = make_server(app, grace_s=PATIENCE)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    engine.start()
    thread.start()
    url = url_of(listener)
    client = httpx2.Client(base_url=url, timeout=PATIENCE, verify=False)  # which reads no certificates
    served = Served(url, engine, client)
    try:
        if wait:
            until(lambda: served.get("/healthz").status_code == 200)
        yield served
    finally:
        client.close()
        server.should_exit = True
        thread.join(PATIENCE)
        assert engine.stop(PATIENCE)
        assert not thread.is_alive()


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="session")
def served(tiny_bundle: Path) -> Iterator[Served]:
    """The tiny bundle, served to all tests."""
    with serving(tiny_bundle) as served:
        yield served


@pytest.fixture
def held(tiny_bundle: Path) -> Iterator[tuple[Served, Held]]:
    """A server of a `Held` model that has room for four texts, and reads two at a time."""
    model = Held()
    limits = Limits(texts=4, waiting=4, batch_tokens=2)
    with serving(tiny_bundle, limits=limits, load=lambda: model) as served:
        yield served, model
        model.let_go.set()
