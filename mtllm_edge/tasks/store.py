"""Add, calibrate and remove tasks of a bundle on disk."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.bundle.formats.gguf import read_header
from mtllm_edge.bundle.formats.gguf_lora_schema import adapter_problems
from mtllm_edge.bundle.formats.safetensors import read_shapes
from mtllm_edge.bundle.manifest import Manifest, TaskSpec, WeightSource
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.bundle.tensors import read_arrays
from mtllm_edge.bundle.update import TaskChange, update_bundle, validate_writable
from mtllm_edge.bundle.validation import value_problems
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.inputs import Kind
from mtllm_edge.safe_text import has_control_characters
from mtllm_edge.tasks.head import Head

FOLDER = "tasks"
_NAME = re.compile(r"\w(?:[\w.-]{0,62}\w)?")
_MAX_LICENSE = 200


def validate_task_name(bundle: Bundle, name: str, *, force: bool) -> None:
    """Raise UsageError for an invalid name, for that of another task unless `force` is set, or a read-only bundle."""
    validate_writable(bundle)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a task; use 1 to 64 letters, digits, '_', '-' and inner dots")
    if name in bundle.manifest.tasks and not force:
        raise UsageError(f"{bundle.path} has a task {name!r} already; choose another name, or replace it with --force")


def read_head(path: Path, kind: Kind, labels: tuple[str, ...], temperature: float) -> Head:
    """Read a head that was trained elsewhere.

    Args:
        path: safetensors in float32: ``weight`` (rows, n_embd), optional ``bias`` (rows,).
        kind: Kind of its inputs.
        labels: Label of each row; empty for multiple choice, which has one row.
        temperature: Divisor of the logits.

    Raises:
        UsageError: No such file, or the labels or the temperature are invalid.
        ModelError: The file is damaged, or holds other tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; name the safetensors file of a head")
    for problem in value_problems(TaskSpec(kind=kind, labels=labels, head="", temperature=temperature)):
        raise UsageError(f"the task {problem}")
    for label in labels:
        if not label.strip() or has_control_characters(label):
            raise UsageError(f"a label is {label!r}, expected a word")
    try:
        shapes = read_shapes(path)
    except DamagedFileError as error:
        raise ModelError(f"{path}: {error}; save the head again") from None
    if not {"weight"} <= shapes.keys() <= {"weight", "bias"}:
        raise ModelError(f"{path} holds {', '.join(shapes) or 'nothing'}, expected weight and an optional bias")
    arrays = read_arrays(path)
    return Head(kind, labels, arrays["weight"], arrays.get("bias"), temperature)


def task_source(name: str, origin: str, license: str | None) -> WeightSource | None:
    """Return origin and license of a task for the manifest; None without a license, UsageError for an invalid one."""
    if license is None:
        return None
    if not license.strip() or len(license) > _MAX_LICENSE or has_control_characters(license):
        raise UsageError(f"{license!r} is no license; give an SPDX identifier as CC-BY-4.0, or a few words")
    return WeightSource(part=f"task {name}", name=origin, license=license.strip())


def add_task(
    bundle: Bundle,
    name: str,
    head: Head,
    *,
    adapter: Path | None = None,
    source: WeightSource | None = None,
    force: bool = False,
) -> Bundle:
    """Add a task to a bundle on disk, and return the new bundle.

    Args:
        bundle: The bundle; its manifest is read again, so that tasks added meanwhile stay.
        name: Name of the task.
        head: Head of the task.
        adapter: A LoRA in GGUF, which is applied to the LLM for this task; the file is copied.
        source: Origin and license, from `task_source`.
        force: Replace a task with this name.

    Raises:
        UsageError: The name is taken or invalid, the LLM supports no adapters, or another process keeps the bundle
            locked.
        ModelError: Head or adapter do not fit the bundle.
    """

    def change(bundle: Bundle) -> TaskChange:
        validate_task_name(bundle, name, force=force)
        content = _head_content(bundle, name, head)
        path = _free_path(bundle.manifest, f"{FOLDER}/{name}/head.safetensors", content)
        added, lora_path = {path: content}, None
        if adapter is not None:
            lora = _adapter_content(bundle, adapter)
            lora_path = _free_path(bundle.manifest, f"{FOLDER}/{name}/adapter.gguf", lora)
            added[lora_path] = lora
        task = TaskSpec(
            kind=head.kind,
            labels=head.labels,
            head=path,
            temperature=head.temperature,
            adapter=lora_path,
            temperatures=dict(head.temperatures),
            threshold=head.threshold,
            abstain=head.abstain,
        )
        return TaskChange(name, task, added, () if source is None else (source,))

    return update_bundle(bundle, change)


def update_calibration(bundle: Bundle, name: str, task: TaskSpec) -> Bundle:
    """Write a task's temperatures, threshold and abstention label into a bundle on disk, and return the new bundle.

    Tasks that were added since the bundle was opened stay.

    Raises:
        UsageError: The task changed meanwhile, the bundle must not change, or another process keeps it locked.
        ModelError: A value is invalid.
    """

    def weights(manifest: Manifest, task: TaskSpec | None) -> object:
        return task and (task.kind, task.labels, *((path, manifest.files[path]) for path in task.weights))

    def change(current: Bundle) -> TaskChange:
        if weights(current.manifest, current.manifest.tasks.get(name)) != weights(bundle.manifest, task):
            raise UsageError(f"task {name!r} of {bundle.path} was changed meanwhile; calibrate it again")
        return TaskChange(name, task, {}, sources=None)

    return update_bundle(bundle, change)


def remove_task(bundle: Bundle, name: str) -> Bundle:
    """Remove a task from a bundle on disk, delete its files, and return the new bundle.

    Raises:
        UsageError: No such task, or another process keeps the bundle locked.
    """
    return update_bundle(bundle, lambda current: TaskChange(current.task_name(name), None, {}))


def validate_adapter_support(bundle: Bundle) -> None:
    """Raise UsageError for a bundle whose LLM supports no adapters: only GGUF does."""
    if bundle.manifest.llm.backend != "gguf":
        raise UsageError(f"{bundle.path} has an LLM in ONNX, which supports no adapters; export it in GGUF")


def _head_content(bundle: Bundle, name: str, head: Head) -> bytes:
    """Content of a head's file; raises ModelError if its shapes do not fit the LLM."""
    expected = (len(head.labels) or 1, bundle.manifest.llm.n_embd)
    if head.weight_CE.shape != expected or (head.bias_C is not None and head.bias_C.shape != expected[:1]):
        bias = "none" if head.bias_C is None else list(head.bias_C.shape)
        raise ModelError(
            f"the head of task {name!r} has weight {list(head.weight_CE.shape)} and bias {bias}, "
            f"expected {list(expected)} and {[expected[0]]} or none; use one made for this bundle"
        )
    arrays = {"weight": head.weight_CE} | ({} if head.bias_C is None else {"bias": head.bias_C})
    # safetensors would write an array in Fortran order as it is in memory.
    return safetensors.numpy.save({key: np.ascontiguousarray(array, np.float32) for key, array in arrays.items()})


def _adapter_content(bundle: Bundle, adapter: Path) -> bytes:
    """Content of an adapter's file; raises ModelError if it does not fit the LLM."""
    validate_adapter_support(bundle)
    if not adapter.is_file():
        raise UsageError(f"{adapter} is no file; name a LoRA in GGUF")
    llm = bundle.manifest.llm
    try:
        problems = adapter_problems(adapter, read_header(bundle.path / llm.file), llm.architecture)
    except DamagedFileError as error:
        problems = [str(error)]
    if problems:
        raise ModelError(f"{adapter}: {'; '.join(problems)}; use an adapter of this bundle's LLM")
    return adapter.read_bytes()


def _free_path(manifest: Manifest, path: str, content: bytes) -> str:
    """Return the path, or one with a digest of the content in its name if the bundle lists the path."""
    if path.lower() not in map(str.lower, manifest.files):  # the same file on some systems
        return path
    stem, _, suffix = path.rpartition(".")
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
