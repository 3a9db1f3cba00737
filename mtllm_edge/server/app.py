"""ASGI application with the HTTP endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from mtllm_edge import __version__
from mtllm_edge.bundle.installed import normalize_name
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.inputs import Input
from mtllm_edge.server.auth import AccessMiddleware, AccessPolicy
from mtllm_edge.server.errors import CLIENT_CLOSED_REQUEST, RequestError, add_error_handlers, json_response
from mtllm_edge.server.limits import BodyLimitMiddleware, Limits
from mtllm_edge.server.metrics import Metrics, MetricsMiddleware
from mtllm_edge.server.page import page_response
from mtllm_edge.server.requests import ClassifyRequest, EmbeddingsRequest
from mtllm_edge.server.responses import embeddings_json, models_json, prediction_json
from mtllm_edge.server.worker import Worker


def create_app(
    bundle: Bundle, worker: Worker, limits: Limits, policy: AccessPolicy, metrics: Metrics, *, alias: str
) -> FastAPI:
    """Return the application; the caller starts and stops the worker.

    Requests name the model by its name in the manifest, or by `alias`.
    """
    endpoints = _Endpoints(bundle, worker, limits, metrics, alias)
    # No documentation pages, since they load scripts from other servers, and no telemetry.
    app = FastAPI(
        title="mtllm-edge",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    add_error_handlers(app)
    routes: dict[str, tuple[str, Callable[..., Any]]] = {
        "/classify": ("POST", endpoints.classify),
        "/v1/embeddings": ("POST", endpoints.embeddings),
        "/v1/models": ("GET", endpoints.models),
        "/healthz": ("GET", endpoints.health),
        "/metrics": ("GET", endpoints.metrics),
        "/": ("GET", endpoints.page),
    }
    for path, (method, endpoint) in routes.items():
        app.add_api_route(path, endpoint, methods=[method])
    app.add_middleware(BodyLimitMiddleware, max_bytes=limits.max_body_bytes)
    app.add_middleware(AccessMiddleware, policy=policy)
    app.add_middleware(MetricsMiddleware, metrics=metrics, endpoints=frozenset(routes))
    metrics.queue.set_function(lambda: worker.batcher.waiting)
    return app


class _Endpoints:
    def __init__(self, bundle: Bundle, worker: Worker, limits: Limits, metrics: Metrics, alias: str) -> None:
        self._bundle, self._worker, self._limits, self._metrics = bundle, worker, limits, metrics
        self._name = bundle.manifest.name
        self._accepted_names = {normalize_name(self._name), normalize_name(alias)}
        self._started = int(time.time())

    async def classify(self, body: ClassifyRequest, request: Request) -> Response:
        """Classify texts."""
        task = self._task(body.task)
        self._limits.check_texts(body.texts, "texts")
        _, predictions = await self._compute(request, body.texts, task, body.language)
        contents = [prediction_json(prediction) for prediction in predictions]
        return json_response({"model": self._name, "task": task, "predictions": contents})

    async def embeddings(self, body: EmbeddingsRequest, request: Request) -> Response:
        """Embed texts. Embeddings are not normalized."""
        n_embd = self._bundle.manifest.llm.n_embd
        if normalize_name(body.model) not in self._accepted_names:
            raise RequestError(404, f"there is no model {body.model!r}, only {self._name!r}", "model")
        if body.dimensions not in (None, n_embd):
            raise RequestError(422, f"this model's embeddings have {n_embd} dimensions; omit the field", "dimensions")
        texts = [body.input] if isinstance(body.input, str) else body.input
        self._limits.check_texts(texts, "input")
        tokens, rows_E = await self._compute(request, texts, None, body.language)
        return json_response(embeddings_json(self._name, rows_E, tokens, body.encoding_format))

    async def models(self) -> Response:
        """List the model with its tasks and languages."""
        return json_response(models_json(self._bundle, self._started))

    async def health(self) -> Response:
        """Return 200 once the model is loaded, 503 before."""
        ready = self._worker.is_ready
        return json_response({"status": "ready" if ready else "loading"}, 200 if ready else 503)

    async def metrics(self) -> Response:
        """Return metrics in Prometheus's text format."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(self) -> Response:
        """Return the demo page."""
        return page_response()

    def _task(self, name: str | None) -> str:
        tasks = list(self._bundle.manifest.tasks)
        if name is None and len(tasks) == 1:
            return tasks[0]
        if name not in tasks:
            problem = "task is required" if name is None else f"there is no task {name!r}"
            raise RequestError(422, f"{problem}; this model has {', '.join(tasks) or 'none'}", "task")
        return name

    async def _compute(
        self, request: Request, texts: Sequence[Input], task: str | None, language: str | Sequence[str | None] | None
    ) -> tuple[int, Sequence[Any]]:
        """Return the total number of tokens, and the result of each text."""
        model, batcher = self._worker.model, self._worker.batcher
        batcher.check_room(len(texts))
        encoded, tokens = await run_in_threadpool(model.encode, texts, task, language)
        results = await _unless_disconnected(request, batcher.submit(task, encoded, tokens))
        self._metrics.texts.labels(request.url.path).inc(len(texts))
        self._metrics.tokens.labels(request.url.path).inc(sum(tokens))
        return sum(tokens), results


async def _unless_disconnected(request: Request, future: Future[list[Any]]) -> list[Any]:
    """Wait for the results, and cancel them if the client closes its connection."""
    results = asyncio.wrap_future(future)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    waiting: set[asyncio.Future[Any]] = {results, disconnected}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not results.done():
            raise RequestError(CLIENT_CLOSED_REQUEST, "the client has closed the connection")
        if results.cancelled():
            raise RequestError(503, "the server is shutting down")
        return results.result()
    finally:
        results.cancel()
        disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
