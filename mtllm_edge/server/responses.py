"""What the server answers, as values that JSON has."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.tasks.prediction import Prediction


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    """A prediction: label and confidence, and all of its other fields that hold something."""
    fields: dict[str, Any] = msgspec.to_builtins(prediction)
    first = {"label": prediction.label, "confidence": prediction.confidence}
    return first | {name: value for name, value in fields.items() if value is not None}


def embeddings_json(model: str, rows_E: Sequence[NDArray[np.float32]], tokens: int, encoding: str) -> dict[str, Any]:
    """Vectors as OpenAI sends them: lists of numbers, or in base64 the bytes of little-endian float32.

    Args:
        model: Its name.
        rows_E: The vectors, each (n_embd,).
        tokens: Of all texts together.
        encoding: ``float`` or ``base64``.
    """
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(row_E, encoding)}
        for index, row_E in enumerate(rows_E)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _encoded(row_E: NDArray[np.float32], encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(row_E.astype("<f4").tobytes()).decode()
    return [float(f"{number:.9g}") for number in row_E]  # 9 digits give every float32 back exactly


def models_json(bundle: Bundle, created: int) -> dict[str, Any]:
    """The list of models, as OpenAI has it, with what a client may want to know of the bundle.

    Args:
        bundle: The only model.
        created: When the server was started, in seconds since 1970.
    """
    parts = bundle.manifest
    model = {
        "id": parts.name,
        "object": "model",
        "created": created,
        "owned_by": "mtllm-edge",
        "dimensions": parts.llm.n_embd,
        "max_tokens": parts.encoder.max_tokens,
        "tasks": {name: {"kind": task.kind, "labels": task.labels} for name, task in parts.tasks.items()},
        "needs_language": parts.encoder.needs_language,
        "languages": parts.languages,
    }
    return {"object": "list", "data": [model]}
