"""The endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from mtllm_edge import __version__
from mtllm_edge.bundle.installed import normalize_name
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.inputs import Input
from mtllm_edge.server.auth import Door, Gate
from mtllm_edge.server.errors import CLIENT_GONE, RefusedError, add_handlers, json_response
from mtllm_edge.server.limits import Limits
from mtllm_edge.server.metrics import Metrics, Watch
from mtllm_edge.server.page import page_response
from mtllm_edge.server.requests import ClassifyBody, EmbeddingsBody
from mtllm_edge.server.responses import embeddings_json, models_json, prediction_json
from mtllm_edge.server.worker import Engine, Prepared


def create_app(
    bundle: Bundle, engine: Engine, limits: Limits, door: Door, metrics: Metrics, *, served_as: str
) -> FastAPI:
    """The whole server as an ASGI app; whoever runs it starts and stops the engine.

    Args:
        bundle: What is served.
        engine: Computes.
        limits: What is taken.
        door: Who is let in.
        metrics: Count.
        served_as: What the user calls the bundle, which OpenAI's clients may, too.
    """
    service = _Service(bundle, engine, limits, metrics, served_as)
    # No documentation pages, whose scripts come from elsewhere, and nothing that would tell others of requests.
    app = FastAPI(
        title="mtllm-edge",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    add_handlers(app)
    routes: dict[str, tuple[str, Callable[..., Any]]] = {
        "/classify": ("POST", service.classify),
        "/v1/embeddings": ("POST", service.embeddings),
        "/v1/models": ("GET", service.models),
        "/healthz": ("GET", service.health),
        "/metrics": ("GET", service.figures),
        "/": ("GET", service.page),
    }
    for path, (method, endpoint) in routes.items():
        app.add_api_route(path, endpoint, methods=[method])
    app.add_middleware(Gate, door=door, max_body=limits.body_bytes)
    app.add_middleware(Watch, metrics=metrics, endpoints=frozenset(routes))
    metrics.watch_queue(lambda: engine.batcher.waiting)
    return app


class _Service:
    def __init__(self, bundle: Bundle, engine: Engine, limits: Limits, metrics: Metrics, served_as: str) -> None:
        self._bundle, self._engine, self._limits, self._metrics = bundle, engine, limits, metrics
        self._name = bundle.manifest.name
        self._known_as = {normalize_name(self._name), normalize_name(served_as)}
        self._started = int(time.time())

    async def classify(self, body: ClassifyBody, request: Request) -> Response:
        """Label texts."""
        task = self._task(body.task)
        self._limits.check(body.texts, "texts")
        _, predictions = await self._computed(request, body.texts, task, body.language)
        found = [prediction_json(prediction) for prediction in predictions]
        return json_response({"model": self._name, "task": task, "predictions": found})

    async def embeddings(self, body: EmbeddingsBody, request: Request) -> Response:
        """Turn texts into vectors, which are not scaled to unit length."""
        width = self._bundle.manifest.llm.n_embd
        if normalize_name(body.model) not in self._known_as:
            raise RefusedError(404, f"there is no model {body.model!r} here, only {self._name!r}", "model")
        if body.dimensions not in (None, width):
            raise RefusedError(422, f"this model's vectors have {width} dimensions; leave it out", "dimensions")
        texts = [body.input] if isinstance(body.input, str) else body.input
        self._limits.check(texts, "input")
        prepared, rows_E = await self._computed(request, texts, None, body.language)
        return json_response(embeddings_json(self._name, rows_E, sum(prepared.tokens), body.encoding_format))

    async def models(self) -> Response:
        """Name the one model, its tasks and its languages."""
        return json_response(models_json(self._bundle, self._started))

    async def health(self) -> Response:
        """Say whether the model is loaded: 200 ready, 503 loading."""
        ready = self._engine.is_ready
        return json_response({"status": "ready" if ready else "loading"}, 200 if ready else 503)

    async def figures(self) -> Response:
        """Figures for Prometheus."""
        return Response(self._metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def page(self) -> Response:
        """A page to try it."""
        return page_response()

    def _task(self, task: str | None) -> str:
        known = list(self._bundle.manifest.tasks)
        if task is None and len(known) == 1:
            return known[0]
        if task not in known:
            wrong = "name a task" if task is None else f"there is no task {task!r}"
            raise RefusedError(422, f"{wrong}; this model has {', '.join(known) or 'none'}", "task")
        return task

    async def _computed(
        self,
        request: Request,
        texts: Sequence[Input],
        task: str | None,
        language: str | Sequence[str | None] | None,
    ) -> tuple[Prepared, Sequence[Any]]:
        model, batcher = self._engine.model, self._engine.batcher
        batcher.check_room(len(texts))
        prepared = await run_in_threadpool(model.prepare, texts, task, language)
        results = await _unless_gone(request, batcher.submit(task, prepared.items, prepared.tokens))
        endpoint = request.url.path
        self._metrics.texts.labels(endpoint).inc(len(texts))
        self._metrics.tokens.labels(endpoint).inc(sum(prepared.tokens))
        return prepared, results


async def _unless_gone(request: Request, answer: Future[list[Any]]) -> list[Any]:
    """Wait for an answer; where the client closes its connection meanwhile, cancel it."""
    result = asyncio.wrap_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    either: set[asyncio.Future[Any]] = {result, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise RefusedError(CLIENT_GONE, "the client has closed the connection")
        if result.cancelled():
            raise RefusedError(503, "the server is being stopped")
        return result.result()
    finally:
        result.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
