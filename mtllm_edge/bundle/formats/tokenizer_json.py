"""Validate the steps of a `tokenizer.json` (https://huggingface.co/docs/tokenizers) that could exhaust memory or time.

The Rust library checks the structure of the file and panics otherwise; a panic can be caught. Exhausted memory cannot:
replacements and character maps that lengthen a text without bound, and long words in a quadratic algorithm.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from mtllm_edge.bundle.formats.binary import DamagedFileError, decode_json

_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_STEPS_LIMIT = 64
_DEPTH_LIMIT = 16
_PATTERN_LIMIT = 1_024
_GROWTH_LIMIT = 64
"""Maximum growth of a text, as a factor; NFKC alone turns one letter into up to 18."""
_MAPPED_LIMIT = 256
"""Maximum bytes that a character map makes from one letter."""
_WORD_LIMIT = 1_000
_ADDED_LIMIT, _ADDED_LENGTH_LIMIT = 100_000, 1_024


class _Added(msgspec.Struct):
    content: str


class _File(msgspec.Struct):
    model: msgspec.Raw
    added_tokens: list[_Added] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


class _Model(msgspec.Struct):
    type: str
    max_input_chars_per_word: int = 100


def validate_tokenizer(content: bytes) -> None:
    """Raise DamagedFileError for a step that could exhaust memory or time; the library validates the vocabulary."""
    file = decode_json(content, _File, "tokenizer")
    model = decode_json(file.model, _Model, "tokenizer")
    if model.type not in _MODELS:
        raise DamagedFileError(f"has a model of type {model.type!r}, expected {', '.join(_MODELS)}")
    if model.max_input_chars_per_word > _WORD_LIMIT:
        raise DamagedFileError(
            f"reads words of {model.max_input_chars_per_word} letters, expected {_WORD_LIMIT} at most"
        )
    if len(file.added_tokens) > _ADDED_LIMIT:
        raise DamagedFileError(f"adds {len(file.added_tokens)} tokens, expected {_ADDED_LIMIT} at most")
    if not all(0 < len(token.content) <= _ADDED_LENGTH_LIMIT for token in file.added_tokens):
        raise DamagedFileError(f"adds a token without letters, or with more than {_ADDED_LENGTH_LIMIT}")
    steps = [*_steps(file.normalizer), *_steps(file.pre_tokenizer)]
    if len(steps) > _STEPS_LIMIT:
        raise DamagedFileError(f"has {len(steps)} steps, expected {_STEPS_LIMIT} at most")
    growth = math.prod(map(_growth, steps))
    if growth > _GROWTH_LIMIT:
        raise DamagedFileError(f"makes a text up to {growth:g} times longer, expected {_GROWTH_LIMIT} times at most")


def _steps(component: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a component, or the components of a sequence."""
    if component is None:
        return
    if depth > _DEPTH_LIMIT or not isinstance(component, dict):
        raise DamagedFileError(f"has steps that are no objects, or more than {_DEPTH_LIMIT} deep")
    inner = [component[key] for key in ("normalizers", "pretokenizers") if isinstance(component.get(key), list)]
    if not inner:
        yield component
    for items in inner:
        for item in items:
            yield from _steps(item, depth + 1)


def _growth(step: dict[str, Any]) -> float:
    """Maximum growth of a text by a step, as a factor."""
    pattern, content = step.get("pattern"), step.get("content", "")
    search = next(iter(pattern.values()), None) if isinstance(pattern, dict) and len(pattern) == 1 else pattern
    if "pattern" in step and not (isinstance(search, str) and 0 < len(search) <= _PATTERN_LIMIT):
        raise DamagedFileError(
            f"searches for nothing, or for more than {_PATTERN_LIMIT} letters, in {step.get('type')}"
        )
    if "precompiled_charsmap" in step:
        _check_map(step["precompiled_charsmap"])
    if step.get("type") == "Prepend" and len(str(step.get("prepend"))) > _PATTERN_LIMIT:
        raise DamagedFileError(f"prepends more than {_PATTERN_LIMIT} letters")
    if step.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    length = len(search) if isinstance(pattern, dict) and "String" in pattern and isinstance(search, str) else 1
    return max(1.0, len(content) / length)


def _check_map(encoded: Any) -> None:
    """Check SentencePiece's compiled normalizer: a trie after its length, then NUL-terminated replacements."""
    if encoded is None:  # an empty map to the library
        return
    try:
        data = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise DamagedFileError("its character map is no base64") from None
    size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else len(data)
    if size > len(data) - 4 or size % 4:
        raise DamagedFileError(f"its character map has a trie of {size} bytes in {len(data)}")
    if max(map(len, data[4 + size :].split(b"\0"))) > _MAPPED_LIMIT:
        raise DamagedFileError(f"its character map makes more than {_MAPPED_LIMIT} bytes of one letter")
