"""Access control: bearer token and Host header.

A server on loopback accepts loopback names in the Host header only. This stops DNS rebinding, in which a foreign page
points its own host name at 127.0.0.1. A server on any other address requires a bearer token. There are no CORS headers,
so browsers keep scripts of foreign pages from reading responses.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mtllm_edge.errors import UsageError
from mtllm_edge.server.errors import error_response

TOKEN_VARIABLE = "MTLLM_EDGE_TOKEN"
_MIN_TOKEN_LENGTH = 16
_PUBLIC_PATHS = frozenset({"/", "/healthz"})
"""Paths without authorization: the page, which has a field for the token, and the health check."""


@dataclass(frozen=True)
class AccessPolicy:
    """Conditions for a request."""

    token: str | None = None
    """Bearer token; None requires none."""
    loopback_only: bool = True
    """Whether the Host header must be a loopback name."""


def make_access_policy(host: str, token: str | None) -> AccessPolicy:
    """Return the policy of a server on a host; raises UsageError if others may reach it without a token."""
    loopback = is_loopback(host)
    if not loopback and token is None:
        raise UsageError(
            f"other computers may reach {host}, so a token is required; write one to a file and pass --token-file, "
            f"or set {TOKEN_VARIABLE}"
        )
    return AccessPolicy(token, loopback)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(path: Path | None, variable: str | None) -> str | None:
    """Return the token from a file, or else from the value of the environment variable; None without either.

    Raises:
        UsageError: The file is unreadable, or the token is short or has characters that a header cannot contain.
    """
    if path is None and not variable:
        return None
    source = TOKEN_VARIABLE if path is None else str(path)
    try:
        token = (variable or "") if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the token from {path} ({error})") from None
    token = token.strip()
    if len(token) < _MIN_TOKEN_LENGTH or not all("!" <= character <= "~" for character in token):
        raise UsageError(
            f"the token in {source} must have at least {_MIN_TOKEN_LENGTH} ASCII characters without spaces; create "
            'one with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


class AccessMiddleware:
    """ASGI middleware that enforces an access policy."""

    def __init__(self, app: ASGIApp, *, policy: AccessPolicy) -> None:
        """Wrap an app."""
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        headers = Headers(scope=scope)
        if self._policy.loopback_only and not is_loopback(_host_name(headers.get("host", ""))):
            message = "this server accepts the hosts localhost, 127.0.0.1 and [::1] only"
            await error_response(400, message)(scope, receive, send)
        elif scope["path"] not in _PUBLIC_PATHS and not self._is_authorized(headers.get("authorization", "")):
            message = "a token is required, as in: Authorization: Bearer TOKEN"
            challenge = {"WWW-Authenticate": "Bearer"}
            await error_response(401, message, headers=challenge)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_authorized(self, authorization: str) -> bool:
        if self._policy.token is None:
            return True
        scheme, _, token = authorization.partition(" ")
        is_equal = hmac.compare_digest(token.strip().encode(), self._policy.token.encode())
        return is_equal and scheme.lower() == "bearer"


def _host_name(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
