"""Tasks are added to a bundle and taken out of it, and a crash in between leaves the bundle as it was.

New files come first, under names that the bundle does not list; then `bundle.json` is replaced in one step; files that
only the old one listed go last. So a crash leaves at worst a file that is not listed, which harms nothing.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import safetensors.numpy

from mtllm_edge.arrays import read_arrays
from mtllm_edge.bundle import Bundle
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.formats.cursor import DamagedFileError
from mtllm_edge.formats.gguf import read_header
from mtllm_edge.formats.lora import adapter_faults
from mtllm_edge.formats.safetensors import read_shapes
from mtllm_edge.heads import Head
from mtllm_edge.installed import installed_bundles
from mtllm_edge.kinds import Kind
from mtllm_edge.manifest import MANIFEST_NAME, File, Manifest, Task

FOLDER = "tasks"
_NAME = re.compile(r"\w(?:[\w.-]{0,62}\w)?")


def check_task_name(bundle: Bundle, name: str, *, force: bool) -> None:
    """Refuse a name under which no task can be added.

    Raises:
        UsageError: It is not made of letters, digits, ``_``, ``-`` and dots, or is taken and `force` is off; or the
            bundle is an installed one.
    """
    refuse_installed(bundle)
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


def add_task(bundle: Bundle, name: str, head: Head, *, adapter: Path | None = None, force: bool = False) -> Bundle:
    """Add a task to the bundle on disk.

    Args:
        bundle: The bundle; its manifest is read again, so that tasks added meanwhile stay.
        name: The task's.
        head: Its head.
        adapter: A LoRA in GGUF that the LLM wears for it; the file is copied.
        force: Replace a task of that name.

    Returns:
        The bundle with the task.

    Raises:
        UsageError: The name is taken, or cannot be one; or the LLM can wear no adapter.
        ModelError: Head or adapter do not fit the bundle.
    """
    bundle = Bundle.open(bundle.path)
    check_task_name(bundle, name, force=force)
    expected = (len(head.labels) or 1, bundle.manifest.llm.n_embd)
    if head.weight_CE.shape != expected or (head.bias_C is not None and head.bias_C.shape != expected[:1]):
        bias = "none" if head.bias_C is None else list(head.bias_C.shape)
        raise ModelError(
            f"the head of task {name!r} has weight {list(head.weight_CE.shape)} and bias {bias}, "
            f"expected {list(expected)} and {[expected[0]]} or none; use one made for this bundle"
        )
    arrays = {"weight": head.weight_CE} | ({} if head.bias_C is None else {"bias": head.bias_C})
    # Of an array in Fortran's order, safetensors would write the bytes as they lie.
    content = safetensors.numpy.save({key: np.ascontiguousarray(array, np.float32) for key, array in arrays.items()})
    path = _free_path(bundle.manifest, f"{FOLDER}/{name}/head.safetensors", content)
    added, lora_path = {path: content}, None
    if adapter is not None:
        lora = _checked_adapter(bundle, adapter)
        lora_path = _free_path(bundle.manifest, f"{FOLDER}/{name}/adapter.gguf", lora)
        added[lora_path] = lora
    task = Task(
        kind=head.kind,
        labels=head.labels,
        head=path,
        temperature=head.temperature,
        adapter=lora_path,
        temperatures=dict(head.temperatures),
        threshold=head.threshold,
        abstain=head.abstain,
    )
    return _rewrite(bundle, bundle.manifest.tasks | {name: task}, added, changed=name)


def set_confidence(bundle: Bundle, name: str, task: Task) -> Bundle:
    """Write a task's temperatures, threshold and word for unsure into the bundle on disk.

    Args:
        bundle: The bundle that they were measured on; its manifest is read again, so that tasks added meanwhile stay.
        name: The task's.
        task: The task as it shall be, with the head and the adapter that it has.

    Returns:
        The bundle with the task.

    Raises:
        UsageError: The task was changed meanwhile, or the bundle is an installed one.
        ModelError: Something of them cannot be.
    """
    now = Bundle.open(bundle.path)
    refuse_installed(now)
    weights = [path for path in (task.head, task.adapter) if path is not None]
    same = name in now.manifest.tasks and all(
        now.manifest.files.get(path) == bundle.manifest.files.get(path) for path in weights
    )
    if not same or _weights(now.manifest.tasks[name]) != _weights(task):
        raise UsageError(f"task {name!r} of {bundle.path} was changed meanwhile; calibrate it again")
    return _rewrite(now, now.manifest.tasks | {name: task}, {}, changed=None)


def _weights(task: Task) -> tuple[object, ...]:
    """What a task is, apart from its confidence."""
    return task.kind, task.labels, task.head, task.adapter


def remove_task(bundle: Bundle, name: str) -> Bundle:
    """Take a task out of the bundle on disk, and delete its files.

    Returns:
        The bundle without the task.

    Raises:
        UsageError: No such task.
    """
    bundle = Bundle.open(bundle.path)
    refuse_installed(bundle)
    bundle.task_name(name)
    tasks = {other: task for other, task in bundle.manifest.tasks.items() if other != name}
    return _rewrite(bundle, tasks, {}, changed=name)


def refuse_installed(bundle: Bundle) -> None:
    """An installed bundle is pip's: it has recorded its files, and would replace them.

    Raises:
        UsageError: The bundle is one.
    """
    if bundle.path.resolve() in {path.resolve() for path in installed_bundles().values()}:
        raise UsageError(f"{bundle.path} was installed by pip; copy that folder, and change the copy")


def check_can_adapt(bundle: Bundle) -> None:
    """Refuse an adapter for an LLM that can wear none.

    Raises:
        UsageError: The LLM is not in GGUF.
    """
    backend = bundle.manifest.llm.backend
    if backend != "gguf":
        raise UsageError(f"{bundle.path} has its LLM in {backend.upper()}, which wears no adapters; export it in GGUF")


def _checked_adapter(bundle: Bundle, adapter: Path) -> bytes:
    """An adapter's bytes, after its header was found to fit the LLM."""
    check_can_adapt(bundle)
    if not adapter.is_file():
        raise UsageError(f"{adapter} is no file; name a LoRA in GGUF")
    llm = bundle.manifest.llm
    try:
        faults = adapter_faults(adapter, read_header(bundle.path / llm.file), llm.architecture)
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


def _rewrite(bundle: Bundle, tasks: Mapping[str, Task], added: Mapping[str, bytes], *, changed: str | None) -> Bundle:
    """Write the added files, then the manifest, then delete what it no longer lists.

    The sources of the task whose weights are `changed` go.
    """
    old = bundle.manifest
    gone = _files_of(old.tasks) - _files_of(tasks)
    files = {name: file for name, file in old.files.items() if name not in gone}
    files |= {
        name: File(size=len(content), sha256=hashlib.sha256(content).hexdigest()) for name, content in added.items()
    }
    sources = tuple(source for source in old.sources if source.part != f"task {changed}")
    manifest = msgspec.structs.replace(old, tasks=dict(tasks), files=files, sources=sources)
    Manifest.from_json(
        manifest.to_json(), origin=str(bundle.path / MANIFEST_NAME)
    )  # raises where it contradicts itself
    new = Bundle(bundle.path, manifest)
    written = [name for name in added if name not in old.files]
    try:
        for name in written:
            _write(bundle.path, name, added[name])
        new.check()
        _write(bundle.path, MANIFEST_NAME, manifest.to_json())
    except BaseException:
        _delete(bundle.path, written)
        raise
    _delete(bundle.path, [name for name in gone if name in old.files])
    return new


def _files_of(tasks: Mapping[str, Task]) -> set[str]:
    return {path for task in tasks.values() for path in (task.head, task.adapter) if path is not None}


def _write(root: Path, name: str, content: bytes) -> None:
    """Write one file of a bundle whole or not at all, and wait until the disk has it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ModelError(f"{path.parent} is a link that leaves the bundle; copy the folder itself into the bundle")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _delete(root: Path, names: list[str]) -> None:
    """Delete files that no manifest lists, and the folders that held nothing else."""
    for name in names:
        try:
            (root / name).unlink(missing_ok=True)
            (root / name).parent.rmdir()
        except OSError:  # still in use, or the folder holds more: unlisted files harm nothing
            continue
