"""`mtllm-edge serve`; what it needs beyond the runtime is imported when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import click

from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.extras import EXTRAS, require

PATH = click.Path(path_type=Path)
_MANY = click.IntRange(min=1)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; any but loopback needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--token-file",
    type=PATH,
    metavar="FILE",
    help="Holds the token that requests must bring as a bearer token; else the variable MTLLM_EDGE_TOKEN.",
)
@click.option("--threads", type=_MANY, metavar="N", help="CPU threads; by default what suits.")
@click.option(
    "--llm-backend",
    type=click.Choice(["auto", *get_args(LlmBackend)]),
    default="auto",
    show_default=True,
    callback=lambda _context, _option, value: None if value == "auto" else value,
    help="Form of the LLM, in a bundle that has several; auto takes the faster one here.",
)
@click.option("--max-texts", type=_MANY, default=1024, show_default=True, metavar="N", help="Texts in a request.")
@click.option("--max-chars", type=_MANY, default=20_000, show_default=True, metavar="N", help="Characters of a text.")
@click.option("--max-body", type=_MANY, default=8 * 2**20, show_default=True, metavar="BYTES", help="Of a request.")
@click.option(
    "--max-queue", type=_MANY, default=2048, show_default=True, metavar="N", help="Waiting texts; beyond them, 429."
)
@click.option(
    "--batch-tokens", type=_MANY, default=2048, show_default=True, metavar="N", help="Tokens of waiting texts per turn."
)
@click.option(
    "--grace", type=_MANY, default=30, show_default=True, metavar="SECONDS", help="To finish requests when stopped."
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
    """Answer over HTTP what a BUNDLE says of texts.

    POST /classify and /v1/embeddings (OpenAI's), GET /v1/models, /healthz, /metrics (Prometheus's), and at / a page to
    try it. Only this computer is answered, unless another --host is given, which needs a token. Ctrl-C or SIGTERM
    finishes what is in flight first.
    """
    require("serve", *EXTRAS["serve"])
    from mtllm_edge.server.auth import TOKEN_VARIABLE, make_door, read_token
    from mtllm_edge.server.limits import Limits

    limits = Limits(max_body, max_texts, max_chars, max_queue, batch_tokens)
    door = make_door(host, read_token(token_file, os.environ.get(TOKEN_VARIABLE)))
    opened = Bundle.open(bundle)
    from mtllm_edge.server import run
    from mtllm_edge.server.worker import Model

    run.serve(
        opened,
        lambda: Model(opened, threads=threads, llm_backend=llm_backend),
        served_as=bundle.absolute().name,
        address=run.Address(host, port),
        door=door,
        limits=limits,
        grace_s=grace,
    )
