"""Run the server: socket, signals, shutdown."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from mtllm_edge import console
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import UsageError
from mtllm_edge.languages.warnings import LanguageWarning
from mtllm_edge.server.app import create_app
from mtllm_edge.server.auth import AccessPolicy
from mtllm_edge.server.limits import Limits
from mtllm_edge.server.metrics import Metrics
from mtllm_edge.server.worker import Model, Worker

_MAX_CONNECTIONS = 1000
_KEEP_ALIVE_S = 75
_LAST_BATCH_S = 10
"""Time for the worker's current batch at shutdown, after all requests are finished or canceled."""


def serve(
    bundle: Bundle,
    load: Callable[[], Model],
    *,
    alias: str,
    address: tuple[str, int],
    policy: AccessPolicy,
    limits: Limits,
    grace_s: int,
) -> None:
    """Serve a bundle until SIGTERM or Ctrl-C; then running requests have `grace_s` seconds.

    The worker's thread calls `load`. See `create_app` for `alias`; port 0 of an address selects a free one.

    Raises:
        UsageError: The address is not available.
        MtllmError: The model cannot be loaded.
    """
    listener = listen(*address)
    warnings.simplefilter("ignore", LanguageWarning)  # each response has the language of its text
    metrics = Metrics()
    started = time.perf_counter()
    worker = Worker(
        load,
        limits,
        observe=metrics.observe_batch,
        on_ready=lambda: console.note(f"ready after {time.perf_counter() - started:.1f} s"),
        on_failure=lambda: _stop(server),
    )
    server = make_server(create_app(bundle, worker, limits, policy, metrics, alias=alias), grace_s)
    with _signal_handlers(server):
        console.note(f"serving {bundle.manifest.name} at {url_of(listener)} (Ctrl-C stops); loading the model")
        worker.start()
        server.run(sockets=[listener])
    ended = worker.stop(_LAST_BATCH_S)
    if worker.failure is not None:
        raise worker.failure
    console.note("stopped")
    if not ended:
        # Unloading native libraries while the thread still computes in them would crash.
        sys.stderr.flush()
        os._exit(0)


def make_server(app: object, grace_s: int) -> uvicorn.Server:
    """Return a server without an access log, since texts and addresses are private."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=grace_s,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises UsageError for a port in use or privileged, or a host of another computer."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "it is in use; choose another --port, or 0 for a free one",
            errno.EACCES: "ports below 1024 are privileged; choose a higher --port",
        }.get(error.errno or 0, f"{error.strerror}; --host must be an address or name of this computer")
        raise UsageError(f"cannot listen on port {port} of {host}: {advice}") from None


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stop(server: uvicorn.Server) -> None:
    server.should_exit = True


@contextmanager
def _signal_handlers(server: uvicorn.Server) -> Iterator[None]:
    """Stop the server at SIGTERM and Ctrl-C, even before uvicorn installs its own handlers.

    When uvicorn ends it raises the signals it caught again; these handlers then have no further effect.
    """
    previous = {number: signal.signal(number, lambda *_: _stop(server)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
