"""What the files of an encoder in CTranslate2 may hold: the variables that the exporters write, in their shapes.

CTranslate2 multiplies what it is given: it compares few shapes with each other, divides by the number of heads, and
takes the numbers of enumerations as they come. So every variable is derived here from the width and the number of
layers, and nothing else is let through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.bundle.formats.ctranslate2 import FLOAT32, INT8, INT16, Model, Variable

FILES = ("model.bin", "config.json", "vocabulary.json")
"""All that the folder may hold: CTranslate2 also reads others, where it finds them."""
_NAME, _REVISION = "TransformerEncoderSpec", 1
_ACTIVATIONS, _MERGES = 7, 2
_LAYERS_LIMIT, _EMBEDDINGS_LIMIT = 512, 8
_TOKEN_LIMIT = 1_024
_NORM = ("gamma", "beta")
_WORDS = "encoder/embeddings_0/weight"

_Shape = tuple[int, ...]


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    bos_token: str
    eos_token: str
    unk_token: str
    layer_norm_epsilon: float | None = None
    multi_query_attention: bool = False


def encoder_problems(model: Model, *, d_model: int, max_tokens: int) -> list[str]:
    """What keeps a `model.bin` from being the encoder that the manifest describes, as ends of sentences.

    Args:
        model: The file's own word.
        d_model: Width of the states.
        max_tokens: Longest input.
    """
    if (model.name, model.revision) != (_NAME, _REVISION):
        return [f"is a {model.name!r} of revision {model.revision}, expected {_NAME} of revision {_REVISION}"]
    words = model.variables.get(_WORDS)
    faults = []
    if words is None or len(words.shape) != 2 or words.shape[1] != d_model or words.shape[0] < 1:
        faults.append(
            f"word embeddings have shape {list(words.shape if words else ())}, expected [vocabulary, {d_model}]"
        )
    positions = model.variables.get("encoder/position_encodings/encodings")  # absent where the engine computes them
    if positions is not None and len(positions.shape) == 2 and positions.shape[0] < max_tokens:
        faults.append(f"{positions.shape[0]} positions, fewer than max_tokens {max_tokens}")
    return faults or _setting_faults(model.variables, d_model) or _variable_faults(model.variables, d_model)


def _setting_faults(variables: dict[str, Variable], d_model: int) -> list[str]:
    """Numbers by which CTranslate2 divides, or chooses what to do."""
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
    return [f"{name} is {_shown(variables, name)}, which is not possible" for name, holds in rules.items() if not holds]


def _shown(variables: dict[str, Variable], name: str) -> str:
    variable = variables.get(f"encoder/{name}")
    return "absent" if variable is None else str(variable.value if variable.shape == () else list(variable.shape))


def _setting(variables: dict[str, Variable], name: str, kind: int) -> float | None:
    variable = variables.get(f"encoder/{name}")
    return variable.value if variable is not None and (variable.kind, variable.shape) == (kind, ()) else None


def _is_scale(variable: Variable | None) -> bool:
    """A flag, or the number by which embeddings are multiplied."""
    if variable is None or variable.shape != () or variable.value is None:
        return False
    if variable.kind == INT8:
        return variable.value in (0, 1)
    return variable.kind == FLOAT32 and math.isfinite(variable.value)


def _variable_faults(variables: dict[str, Variable], d_model: int) -> list[str]:
    n_layers = _count(variables, "encoder/layer_{}/self_attention/linear_0/weight", _LAYERS_LIMIT)
    if not 1 <= n_layers <= _LAYERS_LIMIT:
        return [f"has {n_layers} layers, expected 1 to {_LAYERS_LIMIT}"]
    expected = dict(_needed(variables, d_model, n_layers))
    missing = [name for name in expected if name not in variables]
    if missing:
        return [f"lacks the variable {missing[0]} and {len(missing) - 1} more"]
    for name in list(expected):
        if name.endswith("/weight") and variables[name].kind == INT8:
            expected[f"{name}_scale"] = expected[name][:1]
    optional = dict(_optional(variables, d_model, n_layers))
    faults = []
    for name, variable in variables.items():
        shape = expected.get(name, optional.get(name))
        may_be_int8 = name.endswith("/weight") and f"{name}_scale" in variables
        if shape is None:
            faults.append(f"holds the variable {name!r}, which no such encoder has")
        elif variable.shape != shape:
            faults.append(f"{name} has shape {list(variable.shape)}, expected {list(shape)}")
        elif shape and variable.kind != (INT8 if may_be_int8 else FLOAT32):
            faults.append(f"{name} has type {variable.kind}, expected float32, or int8 with scales")
    lacking = [name for name in expected if name not in variables]
    return (faults + [f"lacks the variable {name}" for name in lacking])[:3]


def _needed(variables: dict[str, Variable], d_model: int, n_layers: int) -> Iterator[tuple[str, _Shape]]:
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


def _optional(variables: dict[str, Variable], d_model: int, n_layers: int) -> Iterator[tuple[str, _Shape]]:
    yield "encoder/multi_query_attention", ()
    positions = "encoder/position_encodings/encodings"
    yield positions, (_rows(variables, positions), d_model)
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
    """How many variables there are of a name with a number in it, from 0 on; `limit` + 1 of more."""
    return next((index for index in range(limit + 1) if pattern.format(index) not in variables), limit + 1)


def check_config(content: bytes) -> None:
    """Look through `config.json`.

    Raises:
        DamagedFileError: It is none of an encoder, or has settings that the exporters do not write.
    """
    try:
        config = msgspec.json.decode(content, type=_Config)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFileError(f"no configuration of an encoder ({error})") from None
    epsilon = config.layer_norm_epsilon
    if epsilon is not None and not 0 < epsilon <= 1:
        raise DamagedFileError(f"layer_norm_epsilon is {epsilon}, expected above 0")
    if config.multi_query_attention:
        raise DamagedFileError("multi_query_attention is true, which no such encoder has")
    if max(map(len, (config.bos_token, config.eos_token, config.unk_token))) > _TOKEN_LIMIT:
        raise DamagedFileError(f"a special token has more than {_TOKEN_LIMIT} letters")


def check_vocabulary(content: bytes, rows: int) -> None:
    """Look through `vocabulary.json`, which names each of the `rows` of the word embeddings.

    Raises:
        DamagedFileError: It is no list of so many names.
    """
    try:
        names = msgspec.json.decode(content, type=list[str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFileError(f"no vocabulary ({error})") from None
    if len(names) != rows:
        raise DamagedFileError(f"names {len(names)} tokens, the encoder has {rows}")
    if max(map(len, names)) > _TOKEN_LIMIT:
        raise DamagedFileError(f"a token has more than {_TOKEN_LIMIT} letters")
