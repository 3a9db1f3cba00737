"""Error responses in the format of OpenAI's API, so that its clients show the message.

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

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a closed connection; no client receives it."""
_log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is refused."""

    def __init__(
        self, status: int, message: str, param: str | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Take HTTP status, message, field of the request that is at fault, and additional headers."""
        super().__init__(message)
        self.status, self.param, self.headers = status, param, headers


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def error_response(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with an error body."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    phrase = "client closed request" if status == CLIENT_CLOSED_REQUEST else HTTPStatus(status).phrase
    error = {"message": message, "type": kind, "param": param, "code": phrase.lower().replace(" ", "_")}
    # A field name of the request may contain a lone surrogate, which UTF-8 cannot encode.
    encodable = {name: value and value.encode(errors="replace").decode() for name, value in error.items()}
    return json_response({"error": encodable}, status, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Convert every exception of a route to an `error_response`."""
    for kind in (RequestError, QueueFullError, RequestValidationError, MtllmError, HTTPException, Exception):
        app.add_exception_handler(kind, _handle)


async def _handle(_request: Request, error: Exception) -> Response:
    match error:
        case RequestError():
            return error_response(error.status, str(error), error.param, error.headers)
        case QueueFullError():
            return error_response(429, str(error), headers={"Retry-After": str(error.retry_after_s)})
        case RequestValidationError():
            return error_response(422, *_describe(error.errors()[0]))
        case DataError() | UsageError():
            return error_response(422, str(error))
        case MtllmError():
            _log.error("%s", error)
            return error_response(500, "the engine failed; see the server's log")
        case HTTPException():
            return error_response(error.status_code, error.detail, headers=error.headers)
        case _:  # uvicorn logs the traceback
            return error_response(500, "the server failed; see its log")


def _describe(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return message and field of a validation error, without the input."""
    _, *place = error["loc"] or ("body",)
    if error["type"] == "json_invalid":
        return f"the body is not valid JSON: {error['ctx']['error']}", None
    if place[:1] == ["texts"] and len(place) > 1:
        shapes = "a text, a pair [text, text_pair], or a text with choices [text, [choice, choice ...]]"
        return f"text {place[1]} is none of {shapes}", f"texts[{place[1]}]"
    if place[:1] == ["input"]:
        return "input must be a text or a list of texts; token ids belong to another model, send texts", "input"
    if place[:1] == ["language"] and len(place) > 1:
        return "language must be a code or name, or a list with a code, a name or null for each text", "language"
    name = ".".join(map(str, place)) or None
    return f"{name or 'the body'}: {error['msg'][0].lower()}{error['msg'][1:]}", name
