"""`mtllm-edge serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import click

from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.extras import EXTRAS, require

_PATH = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; all but loopback require a token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 selects a free one."
)
@click.option(
    "--token-file",
    type=_PATH,
    metavar="FILE",
    help="File with the bearer token of requests; by default the variable MTLLM_EDGE_TOKEN is used.",
)
@click.option(
    "--threads", type=_POSITIVE, metavar="N", help="CPU threads; by default one per available core, at most 8."
)
@click.option(
    "--llm-backend",
    type=click.Choice(["auto", *get_args(LlmBackend)]),
    default="auto",
    show_default=True,
    callback=lambda _context, _option, value: None if value == "auto" else value,
    help="Backend of the LLM in a bundle with several; auto selects the fastest on this computer.",
)
@click.option("--max-texts", type=_POSITIVE, default=1024, show_default=True, metavar="N", help="Texts per request.")
@click.option(
    "--max-chars", type=_POSITIVE, default=20_000, show_default=True, metavar="N", help="Characters per text."
)
@click.option("--max-body", type=_POSITIVE, default=8 * 2**20, show_default=True, metavar="BYTES", help="Request size.")
@click.option(
    "--max-queue",
    type=_POSITIVE,
    default=2048,
    show_default=True,
    metavar="N",
    help="Waiting texts; above, status 429.",
)
@click.option("--batch-tokens", type=_POSITIVE, default=2048, show_default=True, metavar="N", help="Tokens per batch.")
@click.option(
    "--grace", type=_POSITIVE, default=30, show_default=True, metavar="SECONDS", help="Time for requests at shutdown."
)
def serve(
    bundle: Path,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    threads: int | None,
    llm_backend: LlmBackend | None,
    max_texts: int,
    max_chars: int,
    max_body: int,
    max_queue: int,
    batch_tokens: int,
    grace: int,
) -> None:
    """Serve a BUNDLE over HTTP.

    Endpoints: POST /classify and /v1/embeddings (as in OpenAI's API), GET /v1/models, /healthz, /metrics (Prometheus),
    and a demo page at /. The server listens on loopback only, unless --host is given, which requires a token. After
    Ctrl-C or SIGTERM it finishes running requests.
    """
    require("serve", *EXTRAS["serve"])
    from mtllm_edge.server.auth import TOKEN_VARIABLE, make_access_policy, read_token
    from mtllm_edge.server.limits import Limits

    limits = Limits(
        max_body_bytes=max_body,
        max_texts=max_texts,
        max_characters=max_chars,
        max_queued_texts=max_queue,
        batch_tokens=batch_tokens,
    )
    policy = make_access_policy(host, read_token(token_file, os.environ.get(TOKEN_VARIABLE)))
    opened = Bundle.open(bundle)
    from mtllm_edge.server import run
    from mtllm_edge.server.worker import Model

    run.serve(
        opened,
        lambda: Model(opened, threads=threads, llm_backend=llm_backend),
        alias=bundle.absolute().name,
        address=run.Address(host, port),
        policy=policy,
        limits=limits,
        grace_s=grace,
    )
