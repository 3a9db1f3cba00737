"""Contents of the response bodies."""

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
    """Return label and confidence, then all other fields that are not None."""
    fields: dict[str, Any] = msgspec.to_builtins(prediction)
    first = {"label": prediction.label, "confidence": prediction.confidence}
    return first | {name: value for name, value in fields.items() if value is not None}


def embeddings_json(model: str, rows_E: Sequence[NDArray[np.float32]], tokens: int, encoding: str) -> dict[str, Any]:
    """Return embeddings (n_embd,) in OpenAI's format: ``float`` or, in little-endian float32, ``base64``."""
    embeddings = [_encode(row_E, encoding) for row_E in rows_E]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(embeddings)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _encode(row_E: NDArray[np.float32], encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(row_E.astype("<f4").tobytes()).decode()
    return [float(f"{number:.9g}") for number in row_E]  # 9 digits represent every float32 exactly


def models_json(bundle: Bundle, created: int) -> dict[str, Any]:
    """Return the only model as a list in OpenAI's format, with additional facts; `created` is a Unix time."""
    manifest = bundle.manifest
    model = {
        "id": manifest.name,
        "object": "model",
        "created": created,
        "owned_by": "mtllm-edge",
        "dimensions": manifest.llm.n_embd,
        "max_tokens": manifest.encoder.max_tokens,
        "tasks": {name: {"kind": task.kind, "labels": task.labels} for name, task in manifest.tasks.items()},
        "needs_language": manifest.encoder.needs_language,
        "languages": manifest.languages,
    }
    return {"object": "list", "data": [model]}
