"""From the bytes of `bundle.json` to a manifest whose parts agree with each other.

What a single part can tell of itself its class refuses; here they are compared with each other and with what is sane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from mtllm_edge.bundle.manifest import FORMAT_VERSION, MANIFEST_NAME, UNSURE, LlmBackend, LlmSpec, Manifest, TaskSpec
from mtllm_edge.errors import ModelError
from mtllm_edge.inputs import Kind
from mtllm_edge.safe_text import has_control_characters

_WIDTH_LIMIT, _LAYERS_LIMIT, _TOKENS_LIMIT = 2**16, 512, 2**14
"""Far above every model that fits, and below what would exhaust memory before a file is read."""
_LISTS_LIMIT, _FILES_LIMIT, _PATH_LIMIT, _CODE_LIMIT = 2**16, 4_096, 512, 64
_TEMPERATURES = (1e-5, 1e5)


def parse_manifest(text: bytes, *, origin: str) -> Manifest:
    """Parse and check a manifest.

    Args:
        text: Content of `bundle.json`.
        origin: The file's path, for messages.

    Raises:
        ModelError: Not a manifest, one of another format version, or one whose parts contradict each other.
    """
    try:
        version = msgspec.json.decode(text, type=_Versioned).format_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{origin} is not a bundle manifest ({error}); export the bundle again") from None
    if version != FORMAT_VERSION:
        advice = "upgrade mtllm-edge" if version > FORMAT_VERSION else "export the bundle again"
        raise ModelError(
            f"{origin} has format version {version}, this mtllm-edge reads version {FORMAT_VERSION}: {advice}"
        )
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{origin}: {error}; export the bundle again") from None
    faults = manifest_problems(manifest)
    if faults:
        raise ModelError(f"{origin}: {'; '.join(faults)}; export the bundle again")
    return manifest


def manifest_problems(manifest: Manifest) -> list[str]:
    """All that is wrong with a manifest, as sentences."""
    faults = [
        f"{name} must be positive, found {value}" if value <= 0 else f"{name} is {value}, expected {limit} at most"
        for name, value, limit in (
            ("encoder.d_model", manifest.encoder.d_model, _WIDTH_LIMIT),
            ("encoder.max_tokens", manifest.encoder.max_tokens, _TOKENS_LIMIT),
            ("llm.n_embd", manifest.llm.n_embd, _WIDTH_LIMIT),
            ("llm.n_layer", manifest.llm.n_layer, _LAYERS_LIMIT),
        )
        if not 0 < value <= limit
    ]
    if manifest.encoder.needs_language and not manifest.languages:
        faults.append("the encoder takes a language token but languages is empty")
    if manifest.llm_onnx is not None and _body(manifest.llm_onnx, "onnx") != _body(manifest.llm, "gguf"):
        faults.append("llm_onnx is not the ONNX form of the body that llm has in GGUF")
    for name, task in manifest.tasks.items():
        faults += _task_faults(manifest, name, task)
    faults += [
        f"file path {path!r} does not stay inside the bundle" for path in manifest.files if not _stays_inside(path)
    ]
    if len({path.casefold() for path in manifest.files}) != len(manifest.files):
        faults.append("two file paths differ in upper and lower case only")
    return faults + _size_faults(manifest)


def _task_faults(manifest: Manifest, name: str, task: TaskSpec) -> Iterator[str]:
    if task.kind == "multiple_choice" and task.labels:
        yield f"task {name!r} is multiple choice and takes no labels, found {list(task.labels)}"
    elif task.kind != "multiple_choice" and (len(task.labels) < 2 or len(set(task.labels)) != len(task.labels)):
        yield f"task {name!r} needs two or more different labels, found {list(task.labels)}"
    yield from (f"task {name!r} {fault}" for fault in _confidence_faults(task))
    if task.head not in manifest.files:
        yield f"task {name!r} names the head {task.head!r}, which files does not list"
    if not (task.head.startswith("tasks/") and task.head.endswith(".safetensors")):
        # The name of another model file would put the check of a head in the place of its own.
        yield f"task {name!r} names the head {task.head!r}, expected tasks/....safetensors"
    if task.adapter is None:
        return
    if task.adapter not in manifest.files:
        yield f"task {name!r} names the adapter {task.adapter!r}, which files does not list"
    if not (task.adapter.startswith("tasks/") and task.adapter.endswith(".gguf")):
        yield f"task {name!r} names the adapter {task.adapter!r}, expected tasks/....gguf"
    if manifest.llm.backend != "gguf":
        yield f"task {name!r} has an adapter, which needs an LLM in GGUF, found {manifest.llm.backend}"


def _size_faults(manifest: Manifest) -> list[str]:
    lists = {
        "files": (len(manifest.files), _FILES_LIMIT),
        "tasks": (len(manifest.tasks), _FILES_LIMIT),
        "languages": (len(manifest.languages), _LISTS_LIMIT),
        "labels": (max((len(task.labels) for task in manifest.tasks.values()), default=0), _LISTS_LIMIT),
        "special tokens": (len(manifest.encoder.prefix_tokens + manifest.encoder.suffix_tokens), 64),
    }
    faults = [f"{size} {name}, expected {limit} at most" for name, (size, limit) in lists.items() if size > limit]
    spoilt = next((text for text in _texts(msgspec.to_builtins(manifest)) if has_control_characters(text)), None)
    if spoilt is not None:
        faults.append(f"{spoilt!r} has control characters")
    return faults


def abstain_label_problem(kind: Kind, labels: Sequence[str], abstain: str) -> str | None:
    """What keeps a label from saying that a task abstains, as the end of a sentence about the task."""
    if not abstain.strip() or has_control_characters(abstain):
        return f"abstains with the label {abstain!r}, expected a word"
    if abstain in labels or (kind == "multiple_choice" and abstain.isdecimal()):
        return f"abstains with the label {abstain!r}, which is an answer of its own; name another one"
    return None


def _confidence_faults(task: TaskSpec) -> Iterator[str]:
    """What is wrong with temperatures and threshold; of a language's temperatures, the first."""
    low, high = _TEMPERATURES
    if not task.temperature > 0:
        yield f"has temperature {task.temperature}, expected above 0"
    elif not low <= task.temperature <= high:
        yield f"has temperature {task.temperature}, expected {low:g} to {high:g}"
    if len(task.temperatures) > _LISTS_LIMIT:
        yield f"has temperatures of {len(task.temperatures)} languages, expected {_LISTS_LIMIT} at most"
    else:
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
        fault = abstain_label_problem(task.kind, task.labels, UNSURE if task.abstain is None else task.abstain)
        if fault is not None:
            yield fault


def _stays_inside(path: str) -> bool:
    """Whether a path is relative, plain on every system, and written in the one way that has no detours."""
    parts = PurePosixPath(path).parts
    plain = path == "/".join(parts) and not {"\\", ":"} & set(path) and len(path) <= _PATH_LIMIT
    return (
        plain
        and not any(part == ".." or part.endswith((".", " ")) for part in parts)
        and path not in ("", MANIFEST_NAME)
    )


def _texts(value: Any) -> Iterator[str]:
    """Every string in plain data, keys included."""
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
    """What two forms of one body have in common, if this is the form in question."""
    return llm.backend == backend and (llm.n_embd, llm.n_layer, llm.attention, llm.pooling)


class _Versioned(msgspec.Struct):
    format_version: int
