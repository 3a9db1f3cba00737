"""Prometheus metrics of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtllm_edge.server.errors import error_response

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """Metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        common: dict[str, Any] = {"namespace": "mtllm_edge", "registry": self.registry}
        self.requests = Counter("requests", "Requests.", ["endpoint", "status"], **common)
        self.seconds = Histogram("request_seconds", "Request duration.", ["endpoint"], buckets=_SECONDS, **common)
        self.texts = Counter("texts", "Processed texts.", ["endpoint"], **common)
        self.tokens = Counter("tokens", "Tokens of the processed texts.", ["endpoint"], **common)
        self.queue = Gauge("queue_texts", "Texts in the queue.", **common)
        self.batch_texts = Histogram("batch_texts", "Texts per batch.", buckets=_TEXTS, **common)
        self.batch_tokens = Histogram("batch_tokens", "Tokens per batch.", buckets=_TOKENS, **common)

    def observe_batch(self, texts: int, tokens: int) -> None:
        """Count a batch."""
        self.batch_texts.observe(texts)
        self.batch_tokens.observe(tokens)


class MetricsMiddleware:
    """ASGI middleware that counts and times requests, and responds to those that are canceled at shutdown."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, endpoints: Collection[str]) -> None:
        """Wrap an app; paths that are not in `endpoints` are counted as ``other``."""
        self._app, self._metrics, self._endpoints = app, metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request."""
        endpoint = scope["path"] if scope["path"] in self._endpoints else "other"
        status = None

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_and_record)
        except asyncio.CancelledError:  # uvicorn cancels at the end of the grace period only
            if status is None:
                await error_response(503, "the server is shutting down")(scope, receive, send_and_record)
        finally:
            self._metrics.requests.labels(endpoint, status or 500).inc()
            self._metrics.seconds.labels(endpoint).observe(time.perf_counter() - started)
