"""`mtllm-edge serve`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.options import PATH, llm_backend_option, option_group, threads_option
from mtllm_edge.extras import EXTRAS, require

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _limit(option: str, field: str, default: int, metavar: str, help_text: str) -> Callable[[_Command], _Command]:
    """Return an option with a positive number for a field of `Limits`."""
    return click.option(
        option, field, type=click.IntRange(min=1), default=default, show_default=True, metavar=metavar, help=help_text
    )


limit_options = option_group(
    _limit("--max-texts", "max_texts", 1024, "N", "Texts per request."),
    _limit("--max-chars", "max_characters", 20_000, "N", "Characters per text."),
    _limit("--max-body", "max_body_bytes", 8 * 2**20, "BYTES", "Request size."),
    _limit("--max-queue", "max_queued_texts", 2048, "N", "Waiting texts; above, status 429."),
    _limit("--batch-tokens", "batch_tokens", 2048, "N", "Tokens per batch."),
)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; all but loopback require a token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 selects a free one."
)
@click.option(
    "--token-file",
    type=PATH,
    metavar="FILE",
    help="File with the bearer token of requests; by default the variable MTLLM_EDGE_TOKEN is used.",
)
@threads_option
@llm_backend_option
@limit_options
@_limit("--grace", "grace_s", 30, "SECONDS", "Time for requests at shutdown.")
def serve(
    bundle: Path,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    threads: int | None,
    llm_backend: LlmBackend | None,
    grace_s: int,
    **limits: int,
) -> None:
    """Serve a BUNDLE over HTTP.

    Endpoints: POST /classify and /v1/embeddings (as in OpenAI's API), GET /v1/models, /healthz, /metrics (Prometheus),
    and a demo page at /. The server listens on loopback only, unless --host is given, which requires a token. After
    Ctrl-C or SIGTERM it finishes running requests.
    """
    require("serve", *EXTRAS["serve"])
    from mtllm_edge.server.auth import TOKEN_VARIABLE, make_access_policy, read_token
    from mtllm_edge.server.limits import Limits

    checked_limits = Limits(**limits)
    policy = make_access_policy(host, read_token(token_file, os.environ.get(TOKEN_VARIABLE)))
    opened = Bundle.open(bundle)
    from mtllm_edge.server import run
    from mtllm_edge.server.worker import Model

    run.serve(
        opened,
        lambda: Model(opened, threads=threads, llm_backend=llm_backend),
        alias=bundle.absolute().name,
        address=(host, port),
        policy=policy,
        limits=checked_limits,
        grace_s=grace_s,
    )
