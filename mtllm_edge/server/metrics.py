"""Figures of a running server, in the form that Prometheus reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtllm_edge.server.errors import refusal

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        named: dict[str, Any] = {"namespace": "mtllm_edge", "registry": self.registry}
        self.requests = Counter("requests", "Requests that were answered.", ["endpoint", "status"], **named)
        self.seconds = Histogram("request_seconds", "From request to answer.", ["endpoint"], buckets=_SECONDS, **named)
        self.texts = Counter("texts", "Texts in requests that were computed.", ["endpoint"], **named)
        self.tokens = Counter("tokens", "Tokens of those texts.", ["endpoint"], **named)
        self.queue = Gauge("queue_texts", "Texts that wait for the engine.", **named)
        self.batch_texts = Histogram("batch_texts", "Texts that were read together.", buckets=_TEXTS, **named)
        self.batch_tokens = Histogram("batch_tokens", "Tokens that were read together.", buckets=_TOKENS, **named)

    def observe_batch(self, texts: int, tokens: int) -> None:
        """Count a batch."""
        self.batch_texts.observe(texts)
        self.batch_tokens.observe(tokens)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Let the length of the queue be asked when the figures are."""
        self.queue.set_function(waiting)

    def exposition(self) -> bytes:
        """All figures as Prometheus's text."""
        return generate_latest(self.registry)


class Watch:
    """ASGI middleware that counts and times requests, and answers those that the server's end cuts short."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, endpoints: Collection[str]) -> None:
        """Watch an app; paths that are none of its `endpoints` are counted as ``other``."""
        self._app, self._metrics, self._endpoints = app, metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = scope["path"] if scope["path"] in self._endpoints else "other"
        status = None

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:  # by uvicorn, when the time to finish is over, and by nobody else
            if status is None:
                await refusal(503, "the server is being stopped")(scope, receive, watched)
        finally:
            self._metrics.requests.labels(endpoint, status or 500).inc()
            self._metrics.seconds.labels(endpoint).observe(time.perf_counter() - started)
