"""Parse `bundle.json`, and validate the parts of a manifest against each other.

The manifest's classes check single parts and values; this module checks what they say about each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from mtllm_edge.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    UNSURE,
    LlmBackend,
    LlmSpec,
    Manifest,
    TaskSpec,
)
from mtllm_edge.errors import ModelError
from mtllm_edge.inputs import Kind
from mtllm_edge.safe_text import has_control_characters

_PATH_LIMIT, _CODE_LIMIT = 512, 64
_TEMPERATURES = (1e-5, 1e5)


def parse_manifest(text: bytes, *, origin: str) -> Manifest:
    """Parse and validate a manifest; messages name its `origin`.

    Raises:
        ModelError: Not a manifest, one of another format version, or one with contradictory parts.
    """
    try:
        version = msgspec.json.decode(text, type=_Versioned).format_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{origin} is not a bundle manifest ({error}); export the bundle again") from None
    if version != FORMAT_VERSION:
        remedy = "upgrade mtllm-edge" if version > FORMAT_VERSION else "export the bundle again"
        raise ModelError(
            f"{origin} has format version {version}, this mtllm-edge reads version {FORMAT_VERSION}: {remedy}"
        )
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{origin}: {error}; export the bundle again") from None
    if problems := manifest_problems(manifest):
        raise ModelError(f"{origin}: {'; '.join(problems)}; export the bundle again")
    return manifest


def manifest_problems(manifest: Manifest) -> list[str]:
    """Return all contradictions in a manifest."""
    problems = []
    if manifest.encoder.needs_language and not manifest.languages:
        problems.append("the encoder takes a language token but languages is empty")
    if manifest.llm_onnx is not None and _body(manifest.llm_onnx, "onnx") != _body(manifest.llm, "gguf"):
        problems.append("llm_onnx is not the ONNX form of the GGUF body in llm")
    for name, task in manifest.tasks.items():
        problems += [f"task {name!r} {problem}" for problem in _task_problems(manifest, task)]
    problems += [f"file path {path!r} leaves the bundle" for path in manifest.files if not _is_plain_path(path)]
    if len({path.casefold() for path in manifest.files}) != len(manifest.files):
        problems.append("two file paths differ in upper and lower case only")
    unprintable = next((text for text in _texts(msgspec.to_builtins(manifest)) if has_control_characters(text)), None)
    if unprintable is not None:
        problems.append(f"{unprintable!r} has control characters")
    return problems


def _task_problems(manifest: Manifest, task: TaskSpec) -> Iterator[str]:
    yield from value_problems(task)
    if task.adapter is not None and manifest.llm.backend != "gguf":
        yield f"has an adapter, which needs an LLM in GGUF, found {manifest.llm.backend}"
    for path, (part, suffix) in zip(task.weights, (("head", ".safetensors"), ("adapter", ".gguf")), strict=False):
        if path not in manifest.files:
            yield f"names the {part} {path!r}, which files does not list"
        if not (path.startswith("tasks/") and path.endswith(suffix)):
            # The path of another model file would replace that file's own check.
            yield f"names the {part} {path!r}, expected tasks/...{suffix}"


def abstain_label_problem(kind: Kind, labels: Sequence[str], abstain: str) -> str | None:
    """Return why a label cannot stand for an abstention, as the end of a sentence about the task, or None."""
    if not abstain.strip() or has_control_characters(abstain):
        return f"abstains with the label {abstain!r}, expected a word"
    if abstain in labels or (kind == "multiple_choice" and abstain.isdecimal()):
        return f"abstains with the label {abstain!r}, which is one of its labels; name another one"
    return None


def value_problems(task: TaskSpec) -> Iterator[str]:
    """Yield problems of labels, temperatures and threshold, each as the end of a sentence about the task.

    Of the languages' temperatures, only the first problem.
    """
    if task.kind == "multiple_choice" and task.labels:
        yield f"is multiple choice and takes no labels, found {list(task.labels)}"
    elif task.kind != "multiple_choice" and (len(task.labels) < 2 or len(set(task.labels)) != len(task.labels)):
        yield f"needs two or more different labels, found {list(task.labels)}"
    low, high = _TEMPERATURES
    if not low <= task.temperature <= high:
        yield f"has temperature {task.temperature}, expected {low:g} to {high:g}"
    for code, value in task.temperatures.items():
        if not code.strip() or len(code) > _CODE_LIMIT:
            yield f"has a temperature for the language {code[:_CODE_LIMIT]!r}, which is no code"
            break
        if not low <= value <= high:
            yield f"has temperature {value} for the language {code!r}, expected {low:g} to {high:g}"
            break
    if task.threshold is not None and not 0 <= task.threshold <= 1:
        yield f"has the threshold {task.threshold}, expected 0 to 1"
    if task.threshold is not None or task.abstain is not None:
        problem = abstain_label_problem(task.kind, task.labels, UNSURE if task.abstain is None else task.abstain)
        if problem is not None:
            yield problem


def _is_plain_path(path: str) -> bool:
    """Return whether a path is relative, valid on every system, and normalized."""
    parts = PurePosixPath(path).parts
    return (
        path == "/".join(parts)
        and path not in ("", MANIFEST_NAME)
        and len(path) <= _PATH_LIMIT
        and not {"\\", ":"} & set(path)
        and not any(part == ".." or part.endswith((".", " ")) for part in parts)
    )


def _texts(value: Any) -> Iterator[str]:
    """All strings in plain data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _body(llm: LlmSpec, backend: LlmBackend) -> object:
    """Properties that both backends of an LLM share; False if this is not the given backend."""
    return llm.backend == backend and (llm.n_embd, llm.n_layer, llm.attention, llm.pooling)


class _Versioned(msgspec.Struct):
    format_version: int
