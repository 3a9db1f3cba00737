"""Package a bundle as a wheel, so that `pip install` installs a model.

The wheel holds a Python package without code, the bundle's folder as package data, an entry point for
`mtllm_edge.bundle.installed`, and the licenses in the standard place. It is reproducible: entries are sorted, have a
fixed date, and are stored, because the output of deflate depends on its version.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mtllm_edge import __version__
from mtllm_edge.bundle.installed import ENTRY_POINTS, FOLDER, normalize_name
from mtllm_edge.bundle.manifest import MANIFEST_NAME, Manifest
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import UsageError
from mtllm_edge.files.atomic import atomic_file
from mtllm_edge.safe_text import printable

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_VERSION = re.compile(r"\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?")
_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date of the zip format."""
_MODE = 0o100644 << 16
_LICENSES = "LICENSES/"
_CHUNK = 2**20


def write_wheel(bundle: Bundle, name: str, folder: Path, *, version: str = "1.0", force: bool = False) -> Path:
    """Verify a bundle, and return the path of its new wheel in a folder, which is created if missing.

    The distribution is ``mtllm-edge-bundle-<name>``; `force` replaces an existing wheel.

    Raises:
        UsageError: The name or the version is invalid, or the wheel exists.
        ModelError: The bundle is damaged.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a package; use letters, digits and, between them, '-', '_' and dots")
    if not _VERSION.fullmatch(version):
        raise UsageError(f"{version!r} is no version; write one such as 1.0 or 1.2.0rc1")
    bundle.verify()
    distribution = normalize_name(f"mtllm-edge-bundle-{name}")
    module = distribution.replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with atomic_file(path, force=force) as file, zipfile.ZipFile(file, "w") as archive:
        _fill(archive, bundle, name, distribution, module, version)
    return path


def license_files(manifest: Manifest) -> list[str]:
    """Paths of the license files of a bundle: those of its sources, and the folder of licenses."""
    named = {source.file for source in manifest.sources if source.file is not None}
    return sorted(path for path in manifest.files if path in named or path.startswith(_LICENSES))


def _fill(archive: zipfile.ZipFile, bundle: Bundle, name: str, distribution: str, module: str, version: str) -> None:
    manifest = bundle.manifest
    info = f"{module}-{version}.dist-info"
    small = {
        f"{module}/__init__.py": f'"""The mtllm-edge bundle {name}, in the folder {FOLDER}."""\n',
        f"{info}/METADATA": _metadata(manifest, name, distribution, version),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: mtllm-edge {__version__}\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{ENTRY_POINTS}]\n{name} = {module}\n",
    }
    contents: dict[str, bytes | Path] = {entry: text.encode() for entry, text in small.items()}
    contents |= {f"{module}/{FOLDER}/{path}": bundle.path / path for path in (MANIFEST_NAME, *manifest.files)}
    contents |= {f"{info}/licenses/{path}": bundle.path / path for path in license_files(manifest)}
    record = [(f"{info}/RECORD", "", "")]
    # Metadata comes last, as the wheel specification recommends.
    for entry in sorted(contents, key=lambda entry: (entry.startswith(info), entry)):
        record.append((entry, *_write(archive, entry, contents[entry])))
    rows = io.StringIO(newline="")
    csv.writer(rows, lineterminator="\n").writerows(sorted(record))
    _write(archive, f"{info}/RECORD", rows.getvalue().encode())


def _write(archive: zipfile.ZipFile, entry: str, content: bytes | Path) -> tuple[str, str]:
    """Add an entry, and return its digest and size for RECORD."""
    digest = hashlib.sha256()
    info = zipfile.ZipInfo(entry, _DATE)
    info.create_system, info.external_attr = 3, _MODE  # Unix, on any system
    info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with (
        io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source,
        archive.open(info, "w") as target,
    ):
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return f"sha256={base64.urlsafe_b64encode(digest.digest()).rstrip(b'=').decode()}", str(info.file_size)


def _metadata(manifest: Manifest, name: str, distribution: str, version: str) -> str:
    """METADATA of the wheel. Licenses are not all SPDX identifiers, so they go into the free-text field."""
    names = dict.fromkeys(source.license for source in manifest.sources)
    licenses = " AND ".join(f"({name})" if " OR " in name else name for name in names)
    extra = "[onnx]" if manifest.llm.backend == "onnx" else ""
    head = [
        "Metadata-Version: 2.4",
        f"Name: {distribution}",
        f"Version: {version}",
        f"Summary: The mtllm-edge bundle {name}: {printable(manifest.name)}",
        *([f"License: {printable(licenses)}"] if licenses else []),
        *(f"License-File: {path}" for path in license_files(manifest)),
        "Requires-Python: >=3.10",
        f"Requires-Dist: mtllm-edge{extra}",
        "Description-Content-Type: text/markdown",
    ]
    return "\n".join([*head, "", *_description(manifest, name)]) + "\n"


def _description(manifest: Manifest, name: str) -> Iterator[str]:
    tasks = ", ".join(manifest.tasks) or "none; it embeds"
    yield f"Use it with `mtllm-edge classify -b {name} ...` or `Classifier.load({name!r}, task=...)`."
    yield f"Tasks: {printable(tasks)}."
    yield ""
    for source in manifest.sources:
        warning = " **Non-commercial use only.**" if source.is_non_commercial else ""
        yield f"- {printable(source.part)}: {printable(source.name)}, {printable(source.license)}.{warning}"
