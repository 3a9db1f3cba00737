"""Open a bundle: validate its manifest, files and headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mtllm_edge.bundle import header_checks
from mtllm_edge.bundle.installed import find_bundle, installed_bundles
from mtllm_edge.bundle.manifest import BRIDGE_NAME, MANIFEST_NAME, TOKENIZER_NAME, LlmBackend, LlmSpec, Manifest
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.files.digest import sha256_file
from mtllm_edge.safe_text import printable

_REQUIRED = (TOKENIZER_NAME, BRIDGE_NAME)
_MANIFEST_LIMIT = 64 * 2**20  # a manifest has kilobytes; larger files stay out of memory


@dataclass(frozen=True)
class Bundle:
    """A compiled model: a folder with `bundle.json` and the files that it lists."""

    path: Path
    """The folder."""
    manifest: Manifest
    """Content of `bundle.json`."""

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle, and check it before a native library reads it.

        Checks the manifest, the presence and size of every listed file, and the headers of the model files against the
        manifest. `verify` compares digests.

        Args:
            path: The bundle's folder, or the name of an installed bundle.

        Raises:
            UsageError: `path` is no folder, and no bundle of that name is installed.
            ModelError: The folder is no bundle, or it is incomplete, damaged or of another format version.
        """
        folder = find_bundle(path)
        _validate_folder(folder)
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
            ModelError: Files differ; the message lists all of them.
        """
        _raise_problems(self.path, self._presence_problems())
        _raise_problems(self.path, self._stray_problems())
        _raise_problems(self.path, header_checks.header_problems(self.path, self.manifest))

    def task_name(self, task: str | None) -> str:
        """Return the name of an existing task; None selects the only one.

        Raises:
            UsageError: No such task, or several and `task` is None.
        """
        tasks = list(self.manifest.tasks)
        if not tasks:
            raise UsageError(f"{self.path} has no task; use `mtllm-edge embed`, or export it with a head")
        if task is None and len(tasks) == 1:
            return tasks[0]
        if task is None:
            raise UsageError(f"{self.path} has the tasks {', '.join(tasks)}; name one of them as the task")
        if task not in tasks:
            raise UsageError(f"{self.path} has no task {task!r}; it has {', '.join(tasks)}")
        return task

    def llm(self, backend: LlmBackend) -> LlmSpec:
        """Return the LLM for a backend; raises UsageError if the bundle has none."""
        for llm in self.manifest.llms:
            if llm.backend == backend:
                return llm
        only = self.manifest.llm.backend
        raise UsageError(f"{self.path} has its LLM for {only} only; leave the backend out, or export it with {backend}")

    def verify(self) -> None:
        """Compare every file with the size and the SHA-256 in the manifest.

        Raises:
            ModelError: Files differ or are missing; the message lists all of them.
        """
        problems = self._presence_problems()
        for name, listed in self.manifest.files.items():
            if name not in problems and sha256_file(self.path / name) != listed.sha256:
                problems[name] = "its SHA-256 differs from the manifest"
        _raise_problems(self.path, problems)

    def _presence_problems(self) -> dict[str, str]:
        """Problem of each file that is missing, a link, or of another size."""
        problems = {}
        for name, listed in self.manifest.files.items():
            path = self.path / name
            if any(part.is_symlink() for part in (path, *path.parents[: len(PurePosixPath(name).parts) - 1])):
                problems[name] = f"a link, to {path.resolve()}; copy the file itself"
            elif not path.is_file():
                problems[name] = "missing"
            elif (size := path.stat().st_size) != listed.size:
                problems[name] = f"{size} bytes, expected {listed.size}"
        return problems

    def _stray_problems(self) -> dict[str, str]:
        """Problem of each other file in the encoder's folder, because CTranslate2 reads some of them."""
        encoder = self.manifest.encoder
        if encoder.backend != "ctranslate2":
            return {}
        names = [f"{encoder.path}/{path.name}" for path in self.path.joinpath(encoder.path).iterdir()]
        problem = "not a file of an encoder, but the engine would read it; remove it"
        return {name: problem for name in names if name not in encoder.files}


def _validate_folder(path: Path) -> None:
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


def _raise_problems(folder: Path, problems: dict[str, str]) -> None:
    if problems:
        listed = printable("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
        raise ModelError(f"{folder} is damaged ({listed}); copy or export the bundle again")
