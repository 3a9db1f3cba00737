"""Limits on requests, and the middleware that bounds their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input, part_name, parts_of
from mtllm_edge.server.errors import RequestError, error_response

_MAX_DRAINED_BYTES = 64 * 2**20
"""Bytes of a refused body that are read: many clients read no response before the whole body is sent."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server."""

    max_body_bytes: int = 8 * 2**20
    """Size of a request body."""
    max_texts: int = 1024
    """Texts in a request."""
    max_characters: int = 20_000
    """Length of a text, a pair, or a text with choices."""
    max_queued_texts: int = 2048
    """Texts in the queue."""
    batch_tokens: int = 2048
    """Tokens of a batch, unless a single text has more."""

    def __post_init__(self) -> None:
        """Raise UsageError if a valid request does not fit into the queue."""
        if self.max_texts > self.max_queued_texts:
            raise UsageError(
                f"a request may have {self.max_texts} texts, but the queue holds {self.max_queued_texts}; "
                "raise --max-queue or lower --max-texts"
            )

    def check_texts(self, texts: Sequence[Input], field: str) -> None:
        """Raise RequestError, which names the `field`, if there are too many texts, or one is too long."""
        if len(texts) > self.max_texts:
            message = f"there are {len(texts)} texts, at most {self.max_texts} fit into a request; split the request"
            raise RequestError(422, message, field)
        for index, item in enumerate(texts):
            length = sum(map(len, parts_of(item)))
            if length > self.max_characters:
                name = part_name(item, 0, index)
                message = f"{name} has {length} characters, at most {self.max_characters} are allowed; shorten it"
                raise RequestError(422, message, f"{field}[{index}]")


class BodyLimitMiddleware:
    """ASGI middleware that refuses long request bodies."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        """Wrap an app."""
        self._app, self._max_bytes = app, max_bytes
        self._message = f"the body is longer than {max_bytes} bytes; split the request"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it by its Content-Length or, without one, while it is read."""
        if _content_length(scope) > self._max_bytes:
            await _drain(receive)
            await error_response(413, self._message)(scope, receive, send)
        else:
            await self._app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        remaining = self._max_bytes

        async def bounded() -> Message:
            nonlocal remaining
            message = await receive()
            remaining -= len(message.get("body", b""))
            if remaining < 0:
                await _drain(receive)
                raise HTTPException(413, self._message)  # the only exception that fastapi leaves as it is
            return message

        return bounded


def _content_length(scope: Scope) -> int:
    value = Headers(scope=scope).get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0


async def _drain(receive: Receive) -> None:
    drained, has_more = 0, True
    while has_more and drained < _MAX_DRAINED_BYTES:
        message = await receive()
        drained += len(message.get("body", b""))
        has_more = message.get("more_body", False)
