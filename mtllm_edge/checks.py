"""The model files of a bundle against its manifest, before a native library sees a byte.

The native parsers trust much of what they read, and some of their checks end the process. So the structure of each
file is walked first in plain Python: counts, shapes, types and offsets must fit the file's real size (`formats`), and
the widths must be those of the manifest (here). The weights themselves are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeGuard

import msgspec

from mtllm_edge.formats import ctranslate2, gguf, lora, onnx, safetensors
from mtllm_edge.formats.cursor import DamagedFileError
from mtllm_edge.manifest import Architecture, Encoder, Llm, Manifest, Task

_LAYER_TENSORS = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
_FURTHER_TENSORS: dict[Architecture, tuple[str, ...]] = {
    "qwen3": ("attn_q_norm", "attn_k_norm"),
    "gemma2": ("post_attention_norm", "post_ffw_norm"),
    "gemma3": ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"),
}
"""Beside `_LAYER_TENSORS`; the biases of qwen2 may be missing in llama.cpp."""


def header_faults(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Name of each model file that is damaged or contradicts the manifest -> what is wrong with it.

    Args:
        folder: The bundle, whose listed files are all present.
        manifest: Its manifest.
    """
    llm, encoder = manifest.llm, manifest.encoder
    checks: dict[str, Callable[[Path], list[str]]] = {
        "tokenizer.json": _tokenizer_faults,
        encoder.files[0]: partial(
            _encoder_faults if encoder.backend == "ctranslate2" else _onnx_encoder_faults, encoder=encoder
        ),
        "bridge.safetensors": partial(
            _bridge_faults, n_embd=llm.n_embd, d_group=manifest.bridge.stride * encoder.d_model
        ),
    }
    for form in manifest.llms:
        checks[form.file] = partial(_gguf_faults if form.backend == "gguf" else _onnx_faults, llm=form)
    checks |= {task.head: partial(_head_faults, task=task, n_embd=llm.n_embd) for task in manifest.tasks.values()}
    adapters = [task.adapter for task in manifest.tasks.values() if task.adapter is not None]
    checks |= {adapter: partial(_adapter_faults, base=folder / llm.file, llm=llm) for adapter in adapters}
    faults = {name: _faults_of(check, folder / name) for name, check in checks.items()}
    return {name: "; ".join(found) for name, found in faults.items() if found}


def _faults_of(check: Callable[[Path], list[str]], path: Path) -> list[str]:
    try:
        return check(path)
    except DamagedFileError as error:
        return [str(error)]


def _tokenizer_faults(path: Path) -> list[str]:
    class TokenizerFile(msgspec.Struct):
        model: dict[str, msgspec.Raw]

    try:
        msgspec.json.decode(path.read_bytes(), type=TokenizerFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return [f"no tokenizer ({error})"]
    return []


def _encoder_faults(path: Path, encoder: Encoder) -> list[str]:
    shapes = ctranslate2.read_shapes(path)
    faults = []
    words = shapes.get("encoder/embeddings_0/weight", ())
    if len(words) != 2 or words[1] != encoder.d_model:
        faults.append(f"word embeddings have shape {list(words)}, expected [vocabulary, {encoder.d_model}]")
    positions = shapes.get("encoder/position_encodings/encodings")  # absent where the engine computes them
    if positions is not None and positions[0] < encoder.max_tokens:
        faults.append(f"{positions[0]} positions, fewer than max_tokens {encoder.max_tokens}")
    return faults


def _bridge_faults(path: Path, n_embd: int, d_group: int) -> list[str]:
    return _shape_faults(path, required={"weight": (n_embd, d_group), "bias": (n_embd,)})


def _head_faults(path: Path, task: Task, n_embd: int) -> list[str]:
    return _shape_faults(path, required={"weight": (task.rows, n_embd)}, optional={"bias": (task.rows,)})


def _adapter_faults(path: Path, base: Path, llm: Llm) -> list[str]:
    try:
        header = gguf.read_header(base)
    except DamagedFileError:
        return []  # the LLM is what is damaged, and its own check says so
    return lora.adapter_faults(path, header, llm.architecture)


def _shape_faults(
    path: Path, *, required: dict[str, tuple[int, ...]], optional: dict[str, tuple[int, ...]] | None = None
) -> list[str]:
    shapes = safetensors.read_shapes(path)
    expected = required | {name: shape for name, shape in (optional or {}).items() if name in shapes}
    if shapes == expected:
        return []
    return [f"holds {_listed(shapes)}, expected {_listed(expected)}"]


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"


def _gguf_faults(path: Path, llm: Llm) -> list[str]:
    header = gguf.read_header(path)
    architecture = llm.architecture
    expected = {
        "general.architecture": architecture,
        f"{architecture}.embedding_length": llm.n_embd,
        f"{architecture}.block_count": llm.n_layer,
    }
    faults = [
        f"{key} is {header.fields.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if header.fields.get(key) != value
    ]
    if faults:
        return faults
    faults = _head_count_faults(header.fields, architecture, llm.n_embd) + _window_faults(header.fields, architecture)
    names = ["token_embd.weight", "output_norm.weight"]
    in_layers = _LAYER_TENSORS + _FURTHER_TENSORS.get(architecture, ())
    names += [f"blk.{layer}.{name}.weight" for layer in range(llm.n_layer) for name in in_layers]
    missing = [name for name in names if name not in header.shapes]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        faults.append(f"lacks the tensors {', '.join(missing[:3])}{more}")
    return faults


def _head_count_faults(fields: dict[str, gguf.Value], architecture: str, n_embd: int) -> list[str]:
    """Numbers that llama.cpp divides by or asserts on."""
    n_head = fields.get(f"{architecture}.attention.head_count")
    n_head_kv = fields.get(f"{architecture}.attention.head_count_kv", n_head)
    head_dim = fields.get(f"{architecture}.attention.key_length")  # without it, the heads share the width
    if not (_positive(n_head) and _positive(n_head_kv) and n_head % n_head_kv == 0) or (
        head_dim is None and n_embd % n_head != 0
    ):
        return [f"{n_head} heads and {n_head_kv} key-value heads do not divide a width of {n_embd}"]
    head_dim = n_embd // n_head if head_dim is None else head_dim
    faults = []
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        found = fields.get(f"{architecture}.{key}", head_dim)
        if not _positive(found) or found != head_dim:
            faults.append(f"{architecture}.{key} is {found!r}, expected {head_dim}")
    for key in ("feed_forward_length", "context_length"):
        if not _positive(fields.get(f"{architecture}.{key}")):
            faults.append(f"{architecture}.{key} is {fields.get(f'{architecture}.{key}')!r}, expected above 0")
    epsilon = fields.get(f"{architecture}.attention.layer_norm_rms_epsilon")
    if not (isinstance(epsilon, float) and epsilon > 0 and math.isfinite(epsilon)):
        faults.append(f"{architecture}.attention.layer_norm_rms_epsilon is {epsilon!r}, expected above 0")
    return faults


def _window_faults(fields: dict[str, gguf.Value], architecture: Architecture) -> list[str]:
    """Numbers of Gemma, whose attention would be empty or not finite with others."""
    faults = []
    if architecture in ("gemma2", "gemma3") and not _positive(fields.get(f"{architecture}.attention.sliding_window")):
        faults.append(f"{architecture}.attention.sliding_window is missing or 0")
    softcap = fields.get(f"{architecture}.attn_logit_softcapping")
    if architecture == "gemma2" and not (isinstance(softcap, float) and softcap > 0 and math.isfinite(softcap)):
        faults.append(f"{architecture}.attn_logit_softcapping is {softcap!r}, expected above 0")
    return faults


def _onnx_faults(path: Path, llm: Llm) -> list[str]:
    graph = onnx.read_graph(path)
    faults = _onnx_value_faults(graph, {onnx.LLM_INPUTS: (onnx.FLOAT, 3)}, llm.n_embd, "LLM")
    if faults:
        return faults
    norms = {name for name in graph.initializers if name.endswith(".input_layernorm.weight")}
    if norms != {f"layers.{layer}.input_layernorm.weight" for layer in range(llm.n_layer)}:
        faults.append(f"has {len(norms)} layers, expected {llm.n_layer}")
    return faults


def _onnx_encoder_faults(path: Path, encoder: Encoder) -> list[str]:
    graph = onnx.read_graph(path)
    faults = _onnx_value_faults(graph, {onnx.ENCODER_IDS: (onnx.INT64, 2)}, encoder.d_model, "encoder")
    kind, shape = graph.initializers.get(onnx.WORD_EMBEDDINGS, (0, ()))
    if kind not in (onnx.FLOAT, onnx.INT8) or len(shape) != 2 or shape[1] != encoder.d_model:
        faults.append(f"word embeddings have shape {list(shape)}, expected [vocabulary, {encoder.d_model}]")
    return faults


def _onnx_value_faults(graph: onnx.Graph, reads: dict[str, tuple[int, int]], width: int, part: str) -> list[str]:
    """What a graph takes beside the mask (name -> type and dimensions), and the width of its rows."""
    rows = (onnx.FLOAT, 3)
    inputs = {name: (kind, len(shape)) for name, (kind, shape) in graph.inputs.items()}
    outputs = {name: (kind, len(shape)) for name, (kind, shape) in graph.outputs.items()}
    if inputs != {**reads, onnx.MASK: (onnx.INT64, 2)} or outputs != {onnx.STATES: rows}:
        taken, given = ", ".join(graph.inputs), ", ".join(graph.outputs)
        return [f"takes {taken} and gives {given}, which is no {part} of a bundle"]
    shapes = [shape for kind, shape in (graph.inputs | graph.outputs).values() if (kind, len(shape)) == rows]
    widths = {shape[2] for shape in shapes}
    return [] if widths == {width} else [f"width is {sorted(map(str, widths))}, expected {width}"]


def _positive(value: gguf.Value) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0
