"""Errors as the server sends them: one shape, OpenAI's, so that its clients show the sentence.

``{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}``
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mtllm_edge.errors import DataError, MtllmError, UsageError
from mtllm_edge.server.batcher import QueueFullError

CLIENT_GONE = 499
"""nginx's status of a request whose client closed the connection; nobody receives it."""
_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self, status: int, message: str, param: str | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Args: the HTTP status, a sentence, what in the request is at fault, and further headers."""
        super().__init__(message)
        self.status, self.param, self.headers = status, param, headers


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def refusal(status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The response that says an error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    phrase = "client closed request" if status == CLIENT_GONE else HTTPStatus(status).phrase
    error = {"message": message, "type": kind, "param": param, "code": phrase.lower().replace(" ", "_")}
    # What the request calls a field may hold half of a surrogate pair, which UTF-8 cannot say.
    sayable = {name: value and value.encode(errors="replace").decode() for name, value in error.items()}
    return json_response({"error": sayable}, status, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Make every error that leaves a route a `refusal`."""
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(QueueFullError, _queue_full)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(MtllmError, _at_fault)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)


# Starlette's handlers take any exception, though each gets those of its class alone.
async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal(error.status, str(error), error.param, error.headers)


async def _queue_full(_request: Request, error: Exception) -> Response:
    assert isinstance(error, QueueFullError)
    return refusal(429, str(error), headers={"Retry-After": str(error.retry_after_s)})


async def _not_valid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal(422, *_first_fault(error.errors()[0]))


def _first_fault(fault: Mapping[str, Any]) -> tuple[str, str | None]:
    """A sentence about what the request's own check found, without the input, and the place."""
    _, *place = fault["loc"] or ("body",)
    if fault["type"] == "json_invalid":
        return f"the body is no JSON: {fault['ctx']['error']}", None
    if place[:1] == ["texts"] and len(place) > 1:
        shapes = "a text, a pair [text, text_pair], or a text with choices [text, [choice, choice ...]]"
        return f"text {place[1]} is none of {shapes}", f"texts[{place[1]}]"
    if place[:1] == ["input"]:
        advice = "input must be a text or a list of texts; token ids are another model's, send the texts"
        return advice, "input"
    if place[:1] == ["language"] and len(place) > 1:
        return "language must be a code or name, or a list with a code, a name or null for each text", "language"
    name = ".".join(map(str, place)) or None
    return f"{name or 'the body'}: {fault['msg'][0].lower()}{fault['msg'][1:]}", name


async def _at_fault(_request: Request, error: Exception) -> Response:
    if isinstance(error, (DataError, UsageError)):
        return refusal(422, str(error))
    _log.error("%s", error)
    return refusal(500, "the engine failed; the server's log says how")


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, error.detail, headers=error.headers)


async def _unforeseen(_request: Request, _error: Exception) -> Response:
    return refusal(500, "the server failed; its log says how")  # which uvicorn writes, with the traceback
