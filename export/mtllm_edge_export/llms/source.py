"""Locate checkpoints and LLMs, on disk or on the Hugging Face hub. Requires no torch."""

from __future__ import annotations

import re
from pathlib import Path

from mtllm_edge.errors import ModelError
from mtllm_edge.files.digest import sha256_file
from mtllm_edge_train.checkpoints.config import resolve_source
from mtllm_edge_train.checkpoints.llm_weights import LlmWeights, open_llm_weights

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "sentencepiece.bpe.model")


def open_llm(source: str, folder: Path) -> LlmWeights:
    """Open an LLM from `LlmConfig.source`, relative to `folder`; a hub id is downloaded into the hub's cache.

    Raises:
        ModelError: Not installed, not found, or not readable.
    """
    path = resolve_source(source, folder)
    if not Path(path).exists() and _HUB_ID.fullmatch(path):
        path = _download(path)
    return open_llm_weights(path)


def resolve_checkpoint(checkpoint: Path) -> Path:
    """Return a checkpoint's folder; a published stack's hub id is downloaded into the hub's cache.

    Raises:
        ModelError: A hub id that cannot be downloaded.
    """
    name = checkpoint.as_posix()
    if checkpoint.exists() or checkpoint.parent.exists() or not _HUB_ID.fullmatch(name):
        return checkpoint
    return Path(_download(name, extra_patterns=_TOKENIZER_FILES))


def _download(name: str, extra_patterns: tuple[str, ...] = ()) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(f"{name} must be downloaded from the hub; run: pip install huggingface_hub") from None
    try:
        return str(snapshot_download(name, allow_patterns=["config.json", "*.safetensors", *extra_patterns]))
    except (OSError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ModelError(f"{name} cannot be downloaded from the hub ({reason}); name a local folder") from None


def source_digest(source: str, folder: Path) -> str | None:
    """Return the SHA-256 of a source that is one file; None for folders and hub ids."""
    path = Path(resolve_source(source, folder))
    return sha256_file(path) if path.is_file() else None
