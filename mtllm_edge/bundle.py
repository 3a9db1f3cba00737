"""A bundle on disk: opened with every header checked, verified to the last byte, written all or nothing."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mtllm_edge import checks
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.installed import find_bundle, installed_bundles
from mtllm_edge.manifest import MANIFEST_NAME, File, Llm, LlmBackend, Manifest
from mtllm_edge.manifest_checks import parse_manifest

TOKENIZER_NAME = "tokenizer.json"
ENCODER_NAME = "encoder"
"""Folder of an encoder in CTranslate2; `mtllm_edge.manifest.Encoder.path` knows where either form lies."""
BRIDGE_NAME = "bridge.safetensors"
LLM_NAME = "llm.gguf"
"""Of an LLM in GGUF; `mtllm_edge.manifest.Llm.file` knows that of either form."""
_REQUIRED = (TOKENIZER_NAME, BRIDGE_NAME)
_MANIFEST_LIMIT = 64 * 2**20  # a manifest is kilobytes; this only keeps a wrong file out of memory
_CHUNK = 2**20
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a damaged file's own words must not move a terminal's cursor


@dataclass(frozen=True)
class Bundle:
    """A compiled stack: a folder with `bundle.json` and the files that it lists."""

    path: Path
    """The folder."""
    manifest: Manifest
    """Content of its `bundle.json`."""

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle and check it before any native library reads it.

        Checked are the manifest, the presence and size of every listed file, the headers of the model files, and that
        the widths and counts in them are those of the manifest. Contents are not hashed: that is `verify`.

        Args:
            path: The bundle's folder; where there is none of that path, the name of an installed bundle.

        Raises:
            UsageError: `path` is no folder, and no bundle of that name is installed.
            ModelError: The folder is no bundle, or one that is incomplete, damaged or of another format version.
        """
        folder = find_bundle(path)
        _refuse_non_folder(folder)
        bundle = cls(folder, parse_manifest(_read_manifest(folder), origin=str(folder / MANIFEST_NAME)))
        required = (*_REQUIRED, *bundle.manifest.encoder.files, *(llm.file for llm in bundle.manifest.llms))
        missing = [name for name in required if name not in bundle.manifest.files]
        if missing:
            raise ModelError(f"{folder / MANIFEST_NAME} does not list {', '.join(missing)}; export the bundle again")
        bundle.check()
        return bundle

    def check(self) -> None:
        """Compare presence, sizes and headers of the files with the manifest, as `open` does.

        Raises:
            ModelError: Some differ; the message lists all of them.
        """
        _raise_faults(self.path, self._presence_faults())
        _raise_faults(self.path, self._stray_faults())
        _raise_faults(self.path, checks.header_faults(self.path, self.manifest))

    def task_name(self, task: str | None) -> str:
        """The task of that name, or the only one where None is named.

        Raises:
            UsageError: No such task, or several and none is named.
        """
        known = list(self.manifest.tasks)
        if not known:
            raise UsageError(f"{self.path} has no task; use `mtllm-edge embed`, or export it with a head")
        if task is None and len(known) == 1:
            return known[0]
        if task is None:
            raise UsageError(f"{self.path} has the tasks {', '.join(known)}; name one of them as the task")
        if task not in known:
            raise UsageError(f"{self.path} has no task {task!r}; it has {', '.join(known)}")
        return task

    def llm(self, backend: LlmBackend) -> Llm:
        """The form of the LLM for an engine.

        Raises:
            UsageError: The bundle has none.
        """
        for llm in self.manifest.llms:
            if llm.backend == backend:
                return llm
        only = self.manifest.llm.backend
        raise UsageError(f"{self.path} has its LLM for {only} only; leave the backend out, or export it with {backend}")

    def verify(self) -> None:
        """Compare every file with the size and the SHA-256 in the manifest.

        Raises:
            ModelError: Some differ or are missing; the message lists all of them.
        """
        faults = self._presence_faults()
        for name, listed in self.manifest.files.items():
            if name not in faults and _sha256(self.path / name) != listed.sha256:
                faults[name] = "its SHA-256 differs from the manifest"
        _raise_faults(self.path, faults)

    def _presence_faults(self) -> dict[str, str]:
        """Name of each file that is absent, of another size, or a link -> what is wrong with it."""
        faults = {}
        for name, listed in self.manifest.files.items():
            path = self.path / name
            if any(part.is_symlink() for part in (path, *path.parents[: len(PurePosixPath(name).parts) - 1])):
                faults[name] = f"a link, to {path.resolve()}; copy the file itself"
            elif not path.is_file():
                faults[name] = "missing"
            elif (size := path.stat().st_size) != listed.size:
                faults[name] = f"{size} bytes, expected {listed.size}"
        return faults

    def _stray_faults(self) -> dict[str, str]:
        """Files beside the encoder's own, listed or not: CTranslate2 reads what it finds in its folder."""
        encoder = self.manifest.encoder
        if encoder.backend != "ctranslate2":
            return {}
        names = [f"{encoder.path}/{path.name}" for path in self.path.joinpath(encoder.path).iterdir()]
        fault = "not a file of an encoder, but the engine would read it; remove it"
        return {name: fault for name in names if name not in encoder.files}


def list_files(folder: Path) -> dict[str, File]:
    """Size and SHA-256 of every file under `folder` except its manifest, by POSIX path relative to it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: File(size=path.stat().st_size, sha256=_sha256(path))
        for name, path in names.items()
        if name != MANIFEST_NAME
    }


@contextmanager
def write_bundle(out: Path, *, force: bool, marker: str = MANIFEST_NAME) -> Iterator[Path]:
    """Write a bundle all or nothing.

    Yields a temporary folder beside `out`, which takes the name `out` when the block ends without an exception. After
    any exception, KeyboardInterrupt included, neither the temporary folder nor a parent made for it is left.

    Args:
        out: The bundle's folder.
        force: Replace `out` where it exists, and only after the new one is complete. Only a bundle or an empty
            folder is ever replaced, so that a slip of the pen cannot remove anything else.
        marker: File by which a folder is known to be a bundle; checkpoints have another.

    Raises:
        UsageError: `out` exists without `force`, or is not a bundle.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow a link that has the name `out`)
    refuse_existing(out, force=force, marker=marker)
    new_parents = [parent for parent in out.parents if not parent.exists()]
    temporary = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot write to {out.parent} ({error.strerror}); choose another folder") from None
        yield temporary
        refuse_existing(out, force=force, marker=marker)
        _open_permissions(temporary)
        _rename_over(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def _open_permissions(folder: Path) -> None:
    """Let whoever may list the folder read its files: safetensors writes files that only their owner can read."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _rename_over(temporary: Path, out: Path) -> None:
    """Give `temporary` the name `out`; an old `out` steps aside first and comes back if that fails."""
    if not out.exists():
        temporary.rename(out)
        return
    aside = temporary.with_suffix(".old")
    out.rename(aside)
    try:
        temporary.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def refuse_existing(out: Path, *, force: bool, marker: str) -> None:
    """Raise what `write_bundle` would about a name that is taken, without writing anything."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UsageError(f"{out} exists already; choose another name, or replace it with --force")
    replaceable = out.is_dir() and not out.is_symlink() and ((out / marker).is_file() or not any(out.iterdir()))
    if not replaceable:
        raise UsageError(f"{out} exists and holds no {marker}, so --force does not replace it; choose another name")


def _refuse_non_folder(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        installed = ", ".join(installed_bundles()) or "none"
        raise UsageError(
            f"{path} does not exist, nor is a bundle of that name installed ({installed} installed); "
            "name the folder of a bundle, or install one"
        )
    if path.suffix.lower() == ".zip":
        raise UsageError(f"{path} is a zip file; unpack it and name the folder")
    raise UsageError(f"{path} is a file; name the folder of a bundle")


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ModelError(f"{folder} holds no {MANIFEST_NAME}; name the folder that `mtllm-edge export` wrote")
    if path.is_symlink():
        raise ModelError(f"{path} is a link; copy the file itself into the folder")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise ModelError(f"{path} has {path.stat().st_size} bytes, too many for a manifest; export the bundle again")
    return path.read_bytes()


def _raise_faults(folder: Path, faults: dict[str, str]) -> None:
    if faults:
        listed = _CONTROL.sub("?", "; ".join(f"{name}: {fault}" for name, fault in faults.items()))
        raise ModelError(f"{folder} is damaged ({listed}); copy or export the bundle again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
