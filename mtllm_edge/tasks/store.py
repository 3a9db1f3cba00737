"""The tasks of a bundle: heads read, checked, added to its folder and taken out of it."""

from __future__ import annotations

import hashlib
import math
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
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.inputs import Kind
from mtllm_edge.safe_text import has_control_characters
from mtllm_edge.tasks.head import Head

FOLDER = "tasks"
_NAME = re.compile(r"\w(?:[\w.-]{0,62}\w)?")
_MAX_LICENSE = 200


def validate_task_name(bundle: Bundle, name: str, *, force: bool) -> None:
    """Refuse a name under which no task can be added.

    Raises:
        UsageError: It is not made of letters, digits, ``_``, ``-`` and dots, or is taken and `force` is off; or the
            bundle is an installed one or cannot be written to.
    """
    validate_writable(bundle)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a task; use 1 to 64 letters, digits, '_', '-' and inner dots")
    if name in bundle.manifest.tasks and not force:
        raise UsageError(f"{bundle.path} has a task {name!r} already; choose another name, or replace it with --force")


def read_head(path: Path, kind: Kind, labels: tuple[str, ...], temperature: float) -> Head:
    """Read a head that was trained elsewhere.

    Args:
        path: safetensors in float32: ``weight`` (rows, n_embd), and maybe ``bias`` (rows,).
        kind: What it reads.
        labels: Label of each row; none for multiple choice, which has one row.
        temperature: The logits are divided by it.

    Raises:
        UsageError: No such file; or the labels or the temperature cannot be.
        ModelError: It is damaged, or holds something else.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; name the safetensors file of a head")
    if (kind == "multiple_choice") != (not labels) or len(set(labels)) != len(labels) or len(labels) == 1:
        expected = "none" if kind == "multiple_choice" else "two or more, all different"
        raise UsageError(f"a task of the kind {kind!r} has {expected}, as labels, found {list(labels)}")
    strange = next((label for label in labels if not label.strip() or has_control_characters(label)), None)
    if strange is not None:
        raise UsageError(f"a label is {strange!r}, expected a word")
    if not 0 < temperature < math.inf:
        raise UsageError(f"the temperature is {temperature}, expected a number above 0")
    try:
        shapes = read_shapes(path)
    except DamagedFileError as error:
        raise ModelError(f"{path}: {error}; save the head again") from None
    if not {"weight"} <= shapes.keys() <= {"weight", "bias"}:
        raise ModelError(f"{path} holds {', '.join(shapes) or 'nothing'}, expected weight, and maybe bias")
    arrays = read_arrays(path)
    return Head(kind, labels, arrays["weight"], arrays.get("bias"), temperature)


def task_source(name: str, origin: str, license: str | None) -> WeightSource | None:
    """Where a task came from and under which license, as the manifest says it; None where no license is claimed.

    Raises:
        UsageError: The license cannot be one.
    """
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
    """Add a task to the bundle on disk.

    Args:
        bundle: The bundle; its manifest is read again, so that tasks added meanwhile stay.
        name: The task's.
        head: Its head.
        adapter: A LoRA in GGUF that the LLM wears for it; the file is copied.
        source: What `task_source` says of it; None claims nothing.
        force: Replace a task of that name.

    Returns:
        The bundle with the task.

    Raises:
        UsageError: The name is taken, or cannot be one; the LLM can wear no adapter; or others keep the bundle locked.
        ModelError: Head or adapter do not fit the bundle.
    """

    def change(bundle: Bundle) -> TaskChange:
        validate_task_name(bundle, name, force=force)
        content = _checked_head(bundle, name, head)
        path = _free_path(bundle.manifest, f"{FOLDER}/{name}/head.safetensors", content)
        added, lora_path = {path: content}, None
        if adapter is not None:
            lora = _checked_adapter(bundle, adapter)
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
    """Write a task's temperatures, threshold and word for unsure into the bundle on disk.

    Args:
        bundle: The bundle that they were measured on; its manifest is read again, so that tasks added meanwhile stay.
        name: The task's.
        task: The task as it shall be, with the head and the adapter that it has.

    Returns:
        The bundle with the task.

    Raises:
        UsageError: The task was changed meanwhile, the bundle is an installed one, or others keep it locked.
        ModelError: Something of them cannot be.
    """
    weights = [path for path in (task.head, task.adapter) if path is not None]

    def change(now: Bundle) -> TaskChange:
        same = name in now.manifest.tasks and all(
            now.manifest.files.get(path) == bundle.manifest.files.get(path) for path in weights
        )
        if not same or _weights(now.manifest.tasks[name]) != _weights(task):
            raise UsageError(f"task {name!r} of {bundle.path} was changed meanwhile; calibrate it again")
        return TaskChange(name, task, {}, sources=None)

    return update_bundle(bundle, change)


def _weights(task: TaskSpec) -> tuple[object, ...]:
    """What a task is, apart from its confidence."""
    return task.kind, task.labels, task.head, task.adapter


def remove_task(bundle: Bundle, name: str) -> Bundle:
    """Take a task out of the bundle on disk, and delete its files.

    Returns:
        The bundle without the task.

    Raises:
        UsageError: No such task, or others keep the bundle locked.
    """

    def change(bundle: Bundle) -> TaskChange:
        bundle.task_name(name)
        return TaskChange(name, None, {})

    return update_bundle(bundle, change)


def validate_adapter_support(bundle: Bundle) -> None:
    """Refuse an adapter for an LLM that can wear none.

    Raises:
        UsageError: The LLM is not in GGUF.
    """
    backend = bundle.manifest.llm.backend
    if backend != "gguf":
        raise UsageError(f"{bundle.path} has its LLM in {backend.upper()}, which wears no adapters; export it in GGUF")


def _checked_head(bundle: Bundle, name: str, head: Head) -> bytes:
    """A head as a file, after its shapes were found to fit the LLM."""
    expected = (len(head.labels) or 1, bundle.manifest.llm.n_embd)
    if head.weight_CE.shape != expected or (head.bias_C is not None and head.bias_C.shape != expected[:1]):
        bias = "none" if head.bias_C is None else list(head.bias_C.shape)
        raise ModelError(
            f"the head of task {name!r} has weight {list(head.weight_CE.shape)} and bias {bias}, "
            f"expected {list(expected)} and {[expected[0]]} or none; use one made for this bundle"
        )
    arrays = {"weight": head.weight_CE} | ({} if head.bias_C is None else {"bias": head.bias_C})
    # Of an array in Fortran's order, safetensors would write the bytes as they lie.
    return safetensors.numpy.save({key: np.ascontiguousarray(array, np.float32) for key, array in arrays.items()})


def _checked_adapter(bundle: Bundle, adapter: Path) -> bytes:
    """An adapter's bytes, after its header was found to fit the LLM."""
    validate_adapter_support(bundle)
    if not adapter.is_file():
        raise UsageError(f"{adapter} is no file; name a LoRA in GGUF")
    llm = bundle.manifest.llm
    try:
        faults = adapter_problems(adapter, read_header(bundle.path / llm.file), llm.architecture)
    except DamagedFileError as error:
        faults = [str(error)]
    if faults:
        raise ModelError(f"{adapter}: {'; '.join(faults)}; use an adapter of this bundle's LLM")
    return adapter.read_bytes()


def _free_path(manifest: Manifest, path: str, content: bytes) -> str:
    """The path, or, where the bundle lists a file there, one with a part of the content's digest in its name."""
    if path.lower() not in map(str.lower, manifest.files):  # some file systems take both for one
        return path
    stem, _, suffix = path.rpartition(".")
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
