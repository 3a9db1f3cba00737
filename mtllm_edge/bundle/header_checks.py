"""The model files of a bundle against its manifest, before a native library sees a byte.

The native parsers trust much of what they read, and some of their checks end the process. So the structure of each
file is walked first in plain Python: counts, shapes, types and offsets must fit the file's real size (`formats`), and
the widths must be those of the manifest (here). The weights themselves are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mtllm_edge.bundle.formats import (
    ctranslate2,
    ctranslate2_schema,
    gguf,
    gguf_lora_schema,
    gguf_schema,
    onnx,
    safetensors,
    tokenizer_json,
)
from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.bundle.manifest import EncoderSpec, LlmSpec, Manifest, TaskSpec

_JSON_LIMIT = 256 * 2**20
"""Most bytes of a tokenizer or a list of names: those of 500 languages have 20 million."""


def header_problems(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Name of each model file that is damaged or contradicts the manifest -> what is wrong with it.

    Args:
        folder: The bundle, whose listed files are all present.
        manifest: Its manifest.
    """
    faults = {name: run_check(check, folder / name) for name, check in header_checks(folder, manifest).items()}
    return {name: "; ".join(found) for name, found in faults.items() if found}


def header_checks(folder: Path, manifest: Manifest) -> dict[str, Callable[[Path], list[str]]]:
    """Name of each model file -> its check, for `run_check`. Arguments as for `header_problems`."""
    llm, encoder = manifest.llm, manifest.encoder
    checks: dict[str, Callable[[Path], list[str]]] = {
        "tokenizer.json": _tokenizer_faults,
        "bridge.safetensors": partial(
            _bridge_faults, n_embd=llm.n_embd, d_group=manifest.bridge.stride * encoder.d_model
        ),
    }
    if encoder.backend == "ctranslate2":
        model, config, _ = encoder.files
        checks |= {model: partial(_encoder_faults, encoder=encoder), config: _config_faults}
    else:
        checks[encoder.path] = partial(_onnx_encoder_faults, encoder=encoder)
    for form in manifest.llms:
        checks[form.file] = partial(_gguf_faults if form.backend == "gguf" else _onnx_faults, llm=form)
    checks |= {task.head: partial(_head_faults, task=task, n_embd=llm.n_embd) for task in manifest.tasks.values()}
    adapters = [task.adapter for task in manifest.tasks.values() if task.adapter is not None]
    return checks | {adapter: partial(_adapter_faults, base=folder / llm.file, llm=llm) for adapter in adapters}


def run_check(check: Callable[[Path], list[str]], path: Path) -> list[str]:
    """What one check finds wrong with a file, a file that breaks its own format included."""
    try:
        return check(path)
    except DamagedFileError as error:
        return [str(error)]


def _tokenizer_faults(path: Path) -> list[str]:
    tokenizer_json.check(_read_json(path))
    return []


def _encoder_faults(path: Path, encoder: EncoderSpec) -> list[str]:
    model = ctranslate2.read_model(path)
    faults = ctranslate2_schema.encoder_problems(model, d_model=encoder.d_model, max_tokens=encoder.max_tokens)
    if not faults:
        ctranslate2_schema.check_vocabulary(_read_json(path.with_name("vocabulary.json")), model.vocabulary_size)
    return faults


def _config_faults(path: Path) -> list[str]:
    ctranslate2_schema.check_config(_read_json(path))
    return []


def _read_json(path: Path) -> bytes:
    if (size := path.stat().st_size) > _JSON_LIMIT:
        raise DamagedFileError(f"{path.name} has {size} bytes, expected {_JSON_LIMIT} at most")
    return path.read_bytes()


def _bridge_faults(path: Path, n_embd: int, d_group: int) -> list[str]:
    return _shape_faults(path, required={"weight": (n_embd, d_group), "bias": (n_embd,)})


def _head_faults(path: Path, task: TaskSpec, n_embd: int) -> list[str]:
    return _shape_faults(path, required={"weight": (task.rows, n_embd)}, optional={"bias": (task.rows,)})


def _adapter_faults(path: Path, base: Path, llm: LlmSpec) -> list[str]:
    try:
        header = gguf.read_header(base)
    except DamagedFileError:
        return []  # the LLM is what is damaged, and its own check says so
    return gguf_lora_schema.adapter_problems(path, header, llm.architecture)


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


def _gguf_faults(path: Path, llm: LlmSpec) -> list[str]:
    return gguf_schema.faults(
        gguf.read_header(path), architecture=llm.architecture, n_embd=llm.n_embd, n_layer=llm.n_layer
    )


def _onnx_faults(path: Path, llm: LlmSpec) -> list[str]:
    graph = onnx.read_graph(path)
    faults = _onnx_value_faults(graph, {onnx.LLM_INPUTS: (onnx.FLOAT, 3)}, llm.n_embd, "LLM")
    if faults:
        return faults
    norms = {name for name in graph.initializers if name.endswith(".input_layernorm.weight")}
    if norms != {f"layers.{layer}.input_layernorm.weight" for layer in range(llm.n_layer)}:
        faults.append(f"has {len(norms)} layers, expected {llm.n_layer}")
    return faults


def _onnx_encoder_faults(path: Path, encoder: EncoderSpec) -> list[str]:
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
