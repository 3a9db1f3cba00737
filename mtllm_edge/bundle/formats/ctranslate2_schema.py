"""Variables and settings of a CTranslate2 encoder: those that the exporters write, in their shapes.

CTranslate2 compares few shapes with each other, divides by the number of heads, and does not check enumerations. So
every variable is derived here from the width and the number of layers, and others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from mtllm_edge.bundle.formats.binary import DamagedFileError, decode_json
from mtllm_edge.bundle.formats.ctranslate2 import FLOAT32, INT8, INT16, Model, Variable
from mtllm_edge.bundle.formats.tensor_shapes import Shape, shape_problems
from mtllm_edge.bundle.manifest import EncoderSpec

_NAME, _REVISION = "TransformerEncoderSpec", 1
_ACTIVATIONS, _MERGES = 7, 2
_LAYERS_LIMIT, _EMBEDDINGS_LIMIT = 512, 8
_TOKEN_LIMIT = 1_024
_NORM = ("gamma", "beta")
_WORDS = "encoder/embeddings_0/weight"
_POSITIONS = "encoder/position_encodings/encodings"


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    bos_token: str
    eos_token: str
    unk_token: str
    layer_norm_epsilon: float | None = None
    multi_query_attention: bool = False


def encoder_problems(model: Model, encoder: EncoderSpec) -> list[str]:
    """Return the differences between a `model.bin` and the encoder that the manifest describes."""
    if (model.name, model.revision) != (_NAME, _REVISION):
        return [f"is a {model.name!r} of revision {model.revision}, expected {_NAME} of revision {_REVISION}"]
    variables, d_model = model.variables, encoder.d_model
    words = variables.get(_WORDS)
    problems = []
    if words is None or len(words.shape) != 2 or words.shape[1] != d_model or words.shape[0] < 1:
        shape = list(words.shape if words else ())
        problems.append(f"word embeddings have shape {shape}, expected [vocabulary, {d_model}]")
    positions = variables.get(_POSITIONS)  # absent where the engine computes them
    if positions is not None and len(positions.shape) == 2 and positions.shape[0] < encoder.max_tokens:
        problems.append(f"{positions.shape[0]} positions, fewer than max_tokens {encoder.max_tokens}")
    return problems or _setting_problems(variables, d_model) or _variable_problems(variables, d_model)


def _setting_problems(variables: dict[str, Variable], d_model: int) -> list[str]:
    """Check numbers that CTranslate2 divides by or branches on."""
    heads = _setting(variables, "num_heads", INT16)
    n_embeddings = _count(variables, "encoder/embeddings_{}/weight", _EMBEDDINGS_LIMIT)
    merge = _setting(variables, "embeddings_merge", INT8)
    rules = {
        "num_heads": heads is not None and 0 < heads <= d_model and d_model % heads == 0,
        "pre_norm": _setting(variables, "pre_norm", INT8) in (0, 1),
        "activation": _setting(variables, "activation", INT8) in range(_ACTIVATIONS),
        "embeddings_merge": merge in range(_MERGES) and (n_embeddings == 1 or merge == 1),
        "multi_query_attention": _setting(variables, "multi_query_attention", INT8) in (0, None),
        "scale_embeddings": _is_scale(variables.get("encoder/scale_embeddings")),
    }
    invalid = [name for name, is_valid in rules.items() if not is_valid]
    return [f"{name} is {_describe(variables, name)}, which is not possible" for name in invalid]


def _describe(variables: dict[str, Variable], name: str) -> str:
    variable = variables.get(f"encoder/{name}")
    return "absent" if variable is None else str(variable.value if variable.shape == () else list(variable.shape))


def _setting(variables: dict[str, Variable], name: str, kind: int) -> float | None:
    variable = variables.get(f"encoder/{name}")
    return variable.value if variable is not None and (variable.kind, variable.shape) == (kind, ()) else None


def _is_scale(variable: Variable | None) -> bool:
    """Return whether a variable is a flag, or a factor of the embeddings."""
    if variable is None or variable.shape != () or variable.value is None:
        return False
    if variable.kind == INT8:
        return variable.value in (0, 1)
    return variable.kind == FLOAT32 and math.isfinite(variable.value)


def _variable_problems(variables: dict[str, Variable], d_model: int) -> list[str]:
    n_layers = _count(variables, "encoder/layer_{}/self_attention/linear_0/weight", _LAYERS_LIMIT)
    if not 1 <= n_layers <= _LAYERS_LIMIT:
        return [f"has {n_layers} layers, expected 1 to {_LAYERS_LIMIT}"]
    required = dict(_required_shapes(variables, d_model, n_layers))
    weights = [name for name in required if name.endswith("/weight") and name in variables]
    required |= {f"{name}_scale": required[name][:1] for name in weights if variables[name].kind == INT8}
    optional = dict(_optional_shapes(variables, d_model, n_layers))
    shapes = {name: variable.shape for name, variable in variables.items()}
    return (
        shape_problems(shapes, required | optional, optional)
        or [
            f"tensor {name} has type {variable.kind}, expected float32, or int8 with scales"
            for name, variable in variables.items()
            if variable.shape and variable.kind != (INT8 if f"{name}_scale" in required else FLOAT32)
        ][:3]
    )


def _required_shapes(variables: dict[str, Variable], d_model: int, n_layers: int) -> Iterator[tuple[str, Shape]]:
    for name in ("num_heads", "pre_norm", "activation", "embeddings_merge", "scale_embeddings"):
        yield f"encoder/{name}", ()
    for index in range(_count(variables, "encoder/embeddings_{}/weight", _EMBEDDINGS_LIMIT)):
        name = f"encoder/embeddings_{index}/weight"
        yield name, (_rows(variables, name), d_model)
    for layer in range(n_layers):
        attention, ffn = f"encoder/layer_{layer}/self_attention", f"encoder/layer_{layer}/ffn"
        width = _rows(variables, f"{ffn}/linear_0/weight")
        yield f"{attention}/linear_0/weight", (3 * d_model, d_model)
        yield f"{attention}/linear_1/weight", (d_model, d_model)
        yield f"{ffn}/linear_0/weight", (width, d_model)
        yield f"{ffn}/linear_1/weight", (d_model, width)
        for part in (attention, ffn):
            for name in _NORM:
                yield f"{part}/layer_norm/{name}", (d_model,)


def _optional_shapes(variables: dict[str, Variable], d_model: int, n_layers: int) -> Iterator[tuple[str, Shape]]:
    yield "encoder/multi_query_attention", ()
    yield _POSITIONS, (_rows(variables, _POSITIONS), d_model)
    for part in ("layer_norm", "layernorm_embedding"):
        if any(f"encoder/{part}/{name}" in variables for name in _NORM):
            for name in _NORM:
                yield f"encoder/{part}/{name}", (d_model,)
    for layer in range(n_layers):
        attention, ffn = f"encoder/layer_{layer}/self_attention", f"encoder/layer_{layer}/ffn"
        yield f"{attention}/linear_0/bias", (3 * d_model,)
        yield f"{attention}/linear_1/bias", (d_model,)
        yield f"{ffn}/linear_0/bias", (_rows(variables, f"{ffn}/linear_0/weight"),)
        yield f"{ffn}/linear_1/bias", (d_model,)


def _rows(variables: dict[str, Variable], name: str) -> int:
    variable = variables.get(name)
    return max(1, variable.shape[0]) if variable is not None and variable.shape else 1


def _count(variables: dict[str, Variable], pattern: str, limit: int) -> int:
    """Number of consecutive variables of a numbered pattern, from 0; `limit` + 1 for more."""
    return next((index for index in range(limit + 1) if pattern.format(index) not in variables), limit + 1)


def validate_config(content: bytes) -> None:
    """Validate a `config.json`; raises DamagedFileError for settings that the exporters do not write."""
    config = decode_json(content, _Config, "configuration of an encoder")
    epsilon = config.layer_norm_epsilon
    if epsilon is not None and not 0 < epsilon <= 1:
        raise DamagedFileError(f"layer_norm_epsilon is {epsilon}, expected above 0")
    if config.multi_query_attention:
        raise DamagedFileError("multi_query_attention is true, expected false")
    if max(map(len, (config.bos_token, config.eos_token, config.unk_token))) > _TOKEN_LIMIT:
        raise DamagedFileError(f"a special token has more than {_TOKEN_LIMIT} letters")


def validate_vocabulary(content: bytes, rows: int) -> None:
    """Validate a `vocabulary.json`; raises DamagedFileError unless it lists a token for each row of the embeddings."""
    tokens = decode_json(content, list[str], "vocabulary")
    if len(tokens) != rows:
        raise DamagedFileError(f"names {len(tokens)} tokens, the encoder has {rows}")
    if max(map(len, tokens)) > _TOKEN_LIMIT:
        raise DamagedFileError(f"a token has more than {_TOKEN_LIMIT} letters")
