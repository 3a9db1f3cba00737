"""Find what is exported, and the LLM that it stands on, on disk or on the hub. Needs no torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mtllm_edge.errors import ModelError
from mtllm_edge_train.checkpoints.config import resolve_source
from mtllm_edge_train.checkpoints.llm_weights import LlmWeights, open_llm_weights

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_llm(source: str, folder: Path) -> LlmWeights:
    """Open an LLM by its source, fetching a hub id into the hub's own cache.

    Args:
        source: As in `mtllm_edge_train.checkpoints.config.LlmConfig.source`.
        folder: The checkpoint or parts folder, where relative paths start.

    Raises:
        ModelError: Not installed, not found, or not readable.
    """
    path = resolve_source(source, folder)
    if not Path(path).exists() and _HUB_ID.fullmatch(path):
        path = _download(path)
    return open_llm_weights(path)


def resolve_checkpoint(checkpoint: Path) -> Path:
    """A checkpoint's folder: the one named, or where the hub's own cache has the published stack of that id.

    Raises:
        ModelError: It looks like a hub id, and cannot be fetched.
    """
    name = checkpoint.as_posix()
    if checkpoint.exists() or checkpoint.parent.exists() or not _HUB_ID.fullmatch(name):
        return checkpoint
    return Path(_download(name, more=("tokenizer*", "special_tokens_map.json", "sentencepiece.bpe.model")))


def _download(name: str, more: tuple[str, ...] = ()) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(f"{name} must be fetched from the hub; run: pip install huggingface_hub") from None
    try:
        return str(snapshot_download(name, allow_patterns=["config.json", "*.safetensors", *more]))
    except (OSError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ModelError(f"{name} cannot be fetched from the hub ({reason}); name a local folder") from None


def source_digest(source: str, folder: Path) -> str | None:
    """SHA-256 of a source that is one file; None for folders and hub ids."""
    path = Path(resolve_source(source, folder))
    if not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
