"""The demo page at /: one HTML file with inline style and script, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import Response

_INLINE_ELEMENT = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


@cache
def _read_page() -> tuple[str, str]:
    """Return the page and its Content-Security-Policy, which allows inline elements by hash and requests to itself."""
    html = files("mtllm_edge.server").joinpath("page.html").read_text(encoding="utf-8")
    digests = {name: hashlib.sha256(content.encode()).digest() for name, content in _INLINE_ELEMENT.findall(html)}
    style, script = (base64.b64encode(digests[name]).decode() for name in ("style", "script"))
    policy = (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    return html, policy


def page_response() -> Response:
    """Return the page."""
    html, policy = _read_page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(html, headers=headers, media_type="text/html")
