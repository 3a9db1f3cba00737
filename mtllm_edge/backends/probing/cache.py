"""Cache of probing results in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import platformdirs

from mtllm_edge.files.atomic import replace_file

CACHE_VARIABLE = "MTLLM_EDGE_CACHE"
Result = TypeVar("Result")


def cache_folder() -> Path:
    """Return the cache folder: `MTLLM_EDGE_CACHE`, or the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("mtllm-edge"))


def get(name: str, key: dict[str, str], kind: type[Result]) -> Result | None:
    """Return the result of the probe `name` cached under this key; None without one, or if the file is damaged.

    The key contains everything that the result depends on.
    """
    try:
        entry = msgspec.json.decode(_file(name, key).read_bytes(), type=dict[str, msgspec.Raw])
        if msgspec.json.decode(entry["key"], type=dict[str, str]) != key:
            return None
        return msgspec.json.decode(entry["result"], type=kind, strict=True)
    except (OSError, KeyError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def put(name: str, key: dict[str, str], result: object) -> None:
    """Cache a result; a folder that is not writable is ignored. Arguments as for `get`."""
    file = _file(name, key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(file) as opened:
            opened.write(msgspec.json.encode({"key": key, "result": result}))
    except OSError:
        return


def get_or_run(
    name: str, key: dict[str, str], kind: type[Result], probe: Callable[[], tuple[Result, bool]], *, use_cache: bool
) -> Result:
    """Return the cached result of a probe, or run it; without `use_cache`, it is always run.

    `probe` returns the result, and whether it is to be cached. Other arguments are those of `get`.
    """
    cached = get(name, key, kind) if use_cache else None
    if cached is not None:
        return cached
    result, cacheable = probe()
    if cacheable:
        put(name, key, result)
    return result


def _file(name: str, key: dict[str, str]) -> Path:
    return cache_folder() / f"{name}-{hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:16]}.json"
