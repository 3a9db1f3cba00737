"""From a bundle to a running server, and to its end: the socket, the signals, the exit."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn

from mtllm_edge import console
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import UsageError
from mtllm_edge.languages.warnings import LanguageWarning
from mtllm_edge.server.app import create_app
from mtllm_edge.server.auth import Door
from mtllm_edge.server.limits import Limits
from mtllm_edge.server.metrics import Metrics
from mtllm_edge.server.worker import Engine, Model

_MAX_CONNECTIONS = 1000
_KEEP_ALIVE_S = 75
_LAST_BATCH_S = 10
"""How long the engine may take for the batch that it is at, when nobody waits for it any more."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    """0 takes a free one."""


def serve(
    bundle: Bundle,
    load: Callable[[], Model],
    *,
    served_as: str,
    address: Address,
    door: Door,
    limits: Limits,
    grace_s: int,
) -> None:
    """Serve a bundle until SIGTERM or Ctrl-C.

    Args:
        bundle: What is served.
        load: Loads it, in the engine's thread.
        served_as: See `create_app`.
        address: Where to listen.
        door: Who is let in.
        limits: What is taken.
        grace_s: How long requests have to be answered after the signal.

    Raises:
        UsageError: Nothing can listen at the address.
        MtllmError: The model cannot be loaded.
    """
    listener = listen(address)
    warnings.simplefilter("ignore", LanguageWarning)  # every answer says what its text was read as
    metrics = Metrics()
    started = time.perf_counter()
    engine = Engine(
        load,
        limits,
        observe=metrics.observe_batch,
        ready=lambda: console.note(f"ready after {time.perf_counter() - started:.1f} s"),
        failed=lambda: _stop(server),
    )
    server = make_server(create_app(bundle, engine, limits, door, metrics, served_as=served_as), grace_s)
    with _stopped_by_signals(server):
        console.note(f"serving {bundle.manifest.name} at {url_of(listener)} (Ctrl-C stops); loading the model")
        engine.start()
        server.run(sockets=[listener])
    ended = engine.stop(_LAST_BATCH_S)
    if engine.failure is not None:
        raise engine.failure
    console.note("stopped")
    if not ended:
        # A thread that still computes in native code must not see the libraries being taken down.
        sys.stderr.flush()
        os._exit(0)


def make_server(app: object, grace_s: int) -> uvicorn.Server:
    """A server that logs no requests: texts and addresses are nobody's business."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=grace_s,
    )
    return uvicorn.Server(config)


def listen(address: Address) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: The port is taken, the host is not this computer's, or the port needs rights.
    """
    host, port = address.host, address.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = "another program has it; choose another --port, or 0 for a free one"
        elif error.errno == errno.EACCES:
            advice = "ports below 1024 need rights; choose a higher --port"
        else:
            advice = f"{error.strerror}; --host is an address or name of this computer"
        raise UsageError(f"cannot listen on port {port} of {host}: {advice}") from None


def url_of(listener: socket.socket) -> str:
    """What to type into a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stop(server: uvicorn.Server) -> None:
    server.should_exit = True


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Stop the server at SIGTERM and Ctrl-C, also before uvicorn has its own handlers.

    At its end uvicorn raises the signals again that it caught: with these handlers they do no more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        _stop(server)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
