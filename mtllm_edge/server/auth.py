"""The door: who may ask, under which name of the server, and how long the question may be.

On loopback the name in the Host header must be a loopback name: a page from elsewhere whose own name was made to point
at 127.0.0.1 (DNS rebinding) comes with that name, and is refused. Anywhere else a bearer token is asked for. There are
no CORS headers, so that browsers keep other pages' scripts from reading answers.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtllm_edge.errors import UsageError
from mtllm_edge.server.errors import refusal

TOKEN_VARIABLE = "MTLLM_EDGE_TOKEN"
_SHORTEST_TOKEN = 16
_OPEN_PATHS = frozenset({"/", "/healthz"})
"""Without a token: the page, which has a field for it, and the question whether the server is there."""
_LINGER_BYTES = 64 * 2**20
"""Of a body that is too long, so much is read and dropped: many clients read no answer before all is sent."""


@dataclass(frozen=True)
class Door:
    """Who is let in."""

    token: str | None
    """None lets everybody in."""
    loopback_only: bool
    """Whether the server is bound to loopback, and must be asked by a name of it."""


def make_door(host: str, token: str | None) -> Door:
    """The door of a server on a host.

    Raises:
        UsageError: Other computers reach it, and there is no token.
    """
    loopback = is_loopback(host)
    if not loopback and token is None:
        raise UsageError(
            f"other computers may reach {host}, so a token is needed; put one into a file and give --token-file, "
            f"or set {TOKEN_VARIABLE}"
        )
    return Door(token, loopback)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this computer's own and no other's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(path: Path | None, variable: str | None) -> str | None:
    """The token of a file, or else of the environment; None where there is neither.

    Args:
        path: The file.
        variable: The value of the environment variable.

    Raises:
        UsageError: The file cannot be read, or the token is short, or has signs that a header cannot carry.
    """
    if path is None and not variable:
        return None
    origin = TOKEN_VARIABLE if path is None else str(path)
    try:
        token = (variable or "") if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token cannot be read from {path} ({error})") from None
    token = token.strip()
    if len(token) < _SHORTEST_TOKEN or not all("!" <= sign <= "~" for sign in token):
        raise UsageError(
            f"the token in {origin} should have at least {_SHORTEST_TOKEN} signs of ASCII without blanks; make one "
            'with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, door: Door, max_body: int) -> None:
        """Guard an app; no body is longer than `max_body` bytes."""
        self._app, self._door, self._max_body = app, door, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._door.loopback_only and not is_loopback(_host_name(headers.get("host", ""))):
            await refusal(400, "this server answers to localhost, 127.0.0.1 and [::1] only")(scope, receive, send)
        elif scope["path"] not in _OPEN_PATHS and not self._knows_token(headers.get("authorization", "")):
            advice = "a token is needed, as: Authorization: Bearer TOKEN"
            await refusal(401, advice, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)
        elif _length(headers) > self._max_body:
            await _drop(receive)
            await refusal(413, self._too_long)(scope, receive, send)
        else:
            await self._app(scope, self._bounded(receive), send)

    def _knows_token(self, authorization: str) -> bool:
        if self._door.token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._door.token.encode())
        return same and scheme.lower() == "bearer"

    def _bounded(self, receive: Receive) -> Receive:
        """The same, which ends a body that does not say its length when it becomes too long."""
        left = self._max_body

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                await _drop(receive)
                raise HTTPException(413, self._too_long)
            return message

        return bounded

    @property
    def _too_long(self) -> str:
        return f"the body is longer than {self._max_body} bytes; send the texts in parts"


def _host_name(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _length(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


async def _drop(receive: Receive) -> None:
    dropped = 0
    while dropped < _LINGER_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
