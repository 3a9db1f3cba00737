"""Write the `LICENSES` folder of a bundle, with the terms of use of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import msgspec

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import ModelError

FOLDER = "LICENSES"
_FULL_TEXTS = ("Apache-2.0", "MIT")
_CREATIVE_COMMONS = re.compile(r"CC-(BY(?:-NC)?(?:-SA|-ND)?)-(\d\.\d)(?:-([A-Z]{2}))?")


def write_licenses(bundle: Path, sources: Iterable[WeightSource], checkpoint: Path) -> tuple[WeightSource, ...]:
    """Write one file per license, and copy the license files that the sources name in the checkpoint.

    Returns:
        The sources, each with the path of its license inside the bundle.

    Raises:
        ModelError: A license file of a source is not in the checkpoint.
    """
    sources = tuple(sources)
    folder = bundle / FOLDER
    folder.mkdir()
    written = []
    for source in sources:
        if source.file is not None:
            name = _copy_license_file(source.file, folder, checkpoint)
        else:
            name = f"{_slug(source.license)}.txt"
            same = [other for other in sources if other.license == source.license and other.file is None]
            (folder / name).write_text(_notice(source.license, same), encoding="utf-8")
        written.append(msgspec.structs.replace(source, file=f"{FOLDER}/{name}"))
    return tuple(written)


def _copy_license_file(file: str, folder: Path, checkpoint: Path) -> str:
    path = (checkpoint / file).resolve()
    if not path.is_file() or not path.is_relative_to(checkpoint.resolve()):
        raise ModelError(f"{checkpoint} names the license file {file!r}, which is missing; add it or the SPDX id")
    name = _slug(file.removesuffix(path.suffix)) + (path.suffix or ".txt")
    (folder / name).write_bytes(path.read_bytes())
    return name


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[:80] or "license"


def _notice(license_name: str, sources: list[WeightSource]) -> str:
    covered = "".join(f"  {source.part}: {source.name}\n" for source in sources)
    texts = "\n".join(_text(name) for name in re.split(r" (?:AND|OR) ", license_name))
    heading = f"License: {license_name}\nParts of this bundle under this license, or derived from works under it:\n"
    return f"{heading}{covered}\n{texts}"


def _text(license_name: str) -> str:
    if license_name in _FULL_TEXTS:
        return (resources.files(__package__) / "licenses" / f"{license_name}.txt").read_text(encoding="utf-8")
    match = _CREATIVE_COMMONS.fullmatch(license_name)
    if match is None:
        return f"{license_name}: a custom license; ask the owner of the weights for the full terms.\n"
    terms, version, country = match.groups()
    url = f"https://creativecommons.org/licenses/{terms.lower()}/{version}/"
    url += f"{country.lower()}/" if country else ""
    lines = [f"Creative Commons {license_name.removeprefix('CC-')}. Summary: {url}", f"Full text: {url}legalcode"]
    if "NC" in terms:
        lines.append("NonCommercial: these weights may not be used for commercial purposes.")
    if "SA" in terms:
        lines.append("ShareAlike: adapted material that is shared stays under this license.")
    return "\n".join(lines) + "\n"
