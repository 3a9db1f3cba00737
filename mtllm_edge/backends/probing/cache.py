"""What was found out about this machine, kept so that the next process need not find it out again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec
import platformdirs

from mtllm_edge.files.atomic import replace_file

CACHE_VARIABLE = "MTLLM_EDGE_CACHE"
Answer = TypeVar("Answer")


def cache_folder() -> Path:
    """Where the answers are kept: `MTLLM_EDGE_CACHE`, or the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("mtllm-edge"))


def get(question: str, key: dict[str, str], kind: type[Answer]) -> Answer | None:
    """What `put` kept; None where it kept nothing for this key, or the file is damaged.

    Args:
        question: Its name, as the file's begins.
        key: All that the answer depends on.
        kind: The answer's type.
    """
    try:
        kept = msgspec.json.decode(_file(question, key).read_bytes(), type=dict[str, msgspec.Raw])
        if msgspec.json.decode(kept["key"], type=dict[str, str]) != key:
            return None
        return msgspec.json.decode(kept["answer"], type=kind, strict=True)
    except (OSError, KeyError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def put(question: str, key: dict[str, str], answer: object) -> None:
    """Keep an answer; where nothing can be written, the next process asks again. Arguments as for `get`."""
    file = _file(question, key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(file) as opened:
            opened.write(msgspec.json.encode({"key": key, "answer": answer}))
    except OSError:
        return


def _file(question: str, key: dict[str, str]) -> Path:
    return cache_folder() / f"{question}-{hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:16]}.json"
