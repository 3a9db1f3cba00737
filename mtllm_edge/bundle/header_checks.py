"""Check the headers of a bundle's model files against its manifest, before a native library reads them.

Native parsers validate little, and some of their assertions end the process. So the structure of each file is read
in Python first: counts, shapes, types and offsets must fit the file's size (`formats`), and widths must be those of the
manifest. Weights are not read.
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
    onnx_schema,
    safetensors,
    tokenizer_json,
)
from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.bundle.formats.tensor_shapes import shape_problems
from mtllm_edge.bundle.manifest import BRIDGE_NAME, TOKENIZER_NAME, EncoderSpec, LlmSpec, Manifest

HeaderCheck = Callable[[Path], list[str]]
"""Returns the problems of a file, or raises `DamagedFileError`."""
_JSON_LIMIT = 256 * 2**20
"""Maximum size of a tokenizer or vocabulary in bytes; those of 500 languages have 20 million."""


def header_problems(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Return the problems of each damaged or unexpected model file; all files of the manifest exist."""
    problems = {name: run_check(check, folder / name) for name, check in header_checks(folder, manifest).items()}
    return {name: "; ".join(file_problems) for name, file_problems in problems.items() if file_problems}


def header_checks(folder: Path, manifest: Manifest) -> dict[str, HeaderCheck]:
    """Return the check of each model file, for `run_check`. Arguments as for `header_problems`."""
    llm, encoder = manifest.llm, manifest.encoder
    d_group = manifest.bridge.stride * encoder.d_model
    checks: dict[str, HeaderCheck] = {
        TOKENIZER_NAME: _check_tokenizer,
        BRIDGE_NAME: partial(_check_arrays, expected={"weight": (llm.n_embd, d_group), "bias": (llm.n_embd,)}),
    }
    if encoder.backend == "ctranslate2":
        model, config, _ = encoder.files
        checks |= {model: partial(_check_ctranslate2, encoder=encoder), config: _check_config}
    else:
        checks[encoder.path] = lambda path: onnx_schema.encoder_problems(onnx.read_graph(path), encoder)
    for spec in manifest.llms:
        checks[spec.file] = partial(check_llm, llm=spec)
    for task in manifest.tasks.values():
        shapes = {"weight": (task.rows, llm.n_embd), "bias": (task.rows,)}
        checks[task.head] = partial(_check_arrays, expected=shapes, optional=("bias",))
        if task.adapter is not None:
            checks[task.adapter] = partial(_check_adapter, base=folder / llm.file, llm=llm)
    return checks


def run_check(check: HeaderCheck, path: Path) -> list[str]:
    """Return the problems of a file, including damage to its format."""
    try:
        return check(path)
    except DamagedFileError as error:
        return [str(error)]


def check_llm(path: Path, llm: LlmSpec) -> list[str]:
    """Check the file of an LLM."""
    if llm.backend == "gguf":
        return gguf_schema.llm_problems(gguf.read_header(path), llm)
    return onnx_schema.llm_problems(onnx.read_graph(path), llm)


def _check_tokenizer(path: Path) -> list[str]:
    tokenizer_json.validate_tokenizer(_read_json(path))
    return []


def _check_ctranslate2(path: Path, encoder: EncoderSpec) -> list[str]:
    model = ctranslate2.read_model(path)
    problems = ctranslate2_schema.encoder_problems(model, encoder)
    if not problems:
        vocabulary = _read_json(path.with_name("vocabulary.json"))
        ctranslate2_schema.validate_vocabulary(vocabulary, model.vocabulary_size)
    return problems


def _check_config(path: Path) -> list[str]:
    ctranslate2_schema.validate_config(_read_json(path))
    return []


def _check_arrays(path: Path, expected: dict[str, tuple[int, ...]], optional: tuple[str, ...] = ()) -> list[str]:
    return shape_problems(safetensors.read_shapes(path), expected, optional)


def _check_adapter(path: Path, base: Path, llm: LlmSpec) -> list[str]:
    try:
        header = gguf.read_header(base)
    except DamagedFileError:
        return []  # the LLM's own check reports it
    return gguf_lora_schema.adapter_problems(path, header, llm.architecture)


def _read_json(path: Path) -> bytes:
    if (size := path.stat().st_size) > _JSON_LIMIT:
        raise DamagedFileError(f"{path.name} has {size} bytes, expected {_JSON_LIMIT} at most")
    return path.read_bytes()
