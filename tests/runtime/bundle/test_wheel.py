"""Bundles as wheels: installation by pip, and lookup of installed bundles by name."""

from __future__ import annotations

import base64
import csv
import hashlib
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import msgspec
import pytest

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.bundle.installed import find_bundle, installed_bundles
from mtllm_edge.bundle.wheel import write_wheel
from mtllm_edge.errors import UsageError
from tests.fixtures.cli_result import Run
from tests.fixtures.subprocesses import run_python

WHEEL = "mtllm_edge_bundle_my_model-1.0-py3-none-any.whl"
INFO = "mtllm_edge_bundle_my_model-1.0.dist-info"
USE = """
import os, sys
from mtllm_edge import Classifier
from mtllm_edge.cli.main import main
assert not os.listdir(".")
with Classifier.load("my.model", task="topic", threads=1) as classifier:
    print(*classifier.predict(sys.argv[1:]))
sys.exit(main(["verify", "my-model"]) or main(["classify", "-b", "my-model", "-t", "topic", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def installed(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip has installed the wheel of the tiny bundle."""
    folder = tmp_path_factory.mktemp("packaging")
    wheel = write_wheel(Bundle.open(tiny_bundle), "my-model", folder / "dist")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-cache-dir", "--quiet"]
    subprocess.run([*command, "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def test_an_installed_bundle_is_loaded_by_name(installed: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    texts = ["the team is good", "не хорошо", "中国 在 这 里"]
    (tmp_path / "empty").mkdir()
    code = f"import os, sys; os.chdir({str(tmp_path / 'empty')!r}); sys.path.insert(0, {str(installed)!r})\n{USE}"
    child = run_python(code, *texts, folder=tmp_path)
    assert child.returncode == 0, child.stderr
    with Classifier.load(tiny_bundle, task="topic", threads=1) as classifier:
        expected = [*classifier.predict(texts)]
    first, verified, _, *rows = child.stdout.splitlines()
    assert first.split() == expected
    assert verified.endswith("all as recorded")
    assert [label for _, label, _, _ in csv.reader(rows)] == expected


def test_a_folder_takes_precedence_over_an_installed_bundle(
    installed: Path, fresh_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.chdir(tmp_path)
    assert installed_bundles()["my-model"] == installed / "mtllm_edge_bundle_my_model" / "bundle"
    assert find_bundle("My_Model") == installed_bundles()["my-model"]
    Path("my-model").write_text("a file is no bundle")
    assert Bundle.open("my-model").path == installed_bundles()["my-model"]
    Path("my-model").unlink()
    fresh_bundle.rename("my-model")
    assert Bundle.open("my-model").path == Path("my-model")
    with Embedder.load("my-model", threads=1) as embedder:
        assert embedder.bundle.path == Path("my-model")


def test_an_unknown_name(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"your-model does not exist, nor is a bundle of that name installed"):
        Bundle.open("your-model")
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(UsageError, match=r"\(my-model installed\)"):
        Bundle.open("your-model")


def test_an_installed_bundle_is_read_only(
    run: Run,
    installed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(installed)
    Path("in.csv").write_text("text,label\na,x\nb,x\nc,y\nd,y\n")
    for arguments in (["task", "remove", "my-model", "topic"], ["fit", "my-model", "in.csv", "-t", "new"]):
        result = run(*arguments)
        assert result.code == 2
        assert "was installed by pip; copy that folder" in result.err
    Bundle.open("my-model").verify()


def test_wheels_are_reproducible(tiny_bundle: Path, fresh_bundle: Path, tmp_path: Path) -> None:
    one = write_wheel(Bundle.open(tiny_bundle), "my-model", tmp_path / "one")
    other = write_wheel(Bundle.open(fresh_bundle), "my-model", tmp_path / "other")
    assert one.name == other.name == WHEEL
    assert one.read_bytes() == other.read_bytes()


def test_record_lists_every_file(tiny_bundle: Path, tmp_path: Path) -> None:
    wheel = write_wheel(Bundle.open(tiny_bundle), "my-model", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"{INFO}/RECORD").decode().splitlines()
        rows = {path: (digest, size) for path, digest, size in csv.reader(lines)}
        assert sorted(rows) == sorted(archive.namelist())
        assert archive.namelist()[-1] == f"{INFO}/RECORD"
        for path, (digest, size) in rows.items():
            content = archive.read(path)
            sha256 = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            expected = ("", "") if path.endswith("RECORD") else (f"sha256={sha256}", str(len(content)))
            assert (digest, size) == expected


def test_licenses_are_in_the_wheel(run: Run, fresh_bundle: Path, tmp_path: Path) -> None:
    manifest = fresh_bundle / "bundle.json"
    text = manifest.read_text().replace("CC0-1.0", "CC-BY-NC-4.0", 1).replace("CC0-1.0", "MIT OR Apache-2.0", 1)
    manifest.write_text(text)
    result = run("package", fresh_bundle, "--name", "my-model", "-o", "dist")
    assert (result.code, result.out.strip()) == (0, f"dist/{WHEEL}")
    assert result.err == "note: encoder (random numbers) is under CC-BY-NC-4.0: NON-COMMERCIAL USE ONLY\n"
    with zipfile.ZipFile(tmp_path / "dist" / WHEEL) as archive:
        metadata = HeaderParser().parsestr(archive.read(f"{INFO}/METADATA").decode())
        assert archive.read(f"{INFO}/licenses/LICENSES/tiny.txt") == (fresh_bundle / "LICENSES/tiny.txt").read_bytes()
    assert metadata.get_all("License") == ["CC-BY-NC-4.0 AND (MIT OR Apache-2.0) AND CC0-1.0"]
    assert metadata.get_all("License-File") == ["LICENSES/tiny.txt"]
    assert metadata["Requires-Dist"] == "mtllm-edge"
    assert "encoder: random numbers, CC-BY-NC-4.0. **Non-commercial use only.**" in metadata.get_payload()


def test_names_of_files_do_not_add_licenses(tiny_bundle: Path, tmp_path: Path) -> None:
    """Not even a name that is impossible on disk."""
    bundle = Bundle.open(tiny_bundle)
    renamed = msgspec.structs.replace(bundle.manifest, name="tiny\nLicense: mine")
    wheel = write_wheel(Bundle(tiny_bundle, renamed), "my-model", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(f"{INFO}/METADATA").decode())
    assert metadata.get_all("License") == ["CC0-1.0"]


WRONG = {
    "name": (["--name", "../x"], 2, "'../x' is no name for a package"),
    "version": (["--name", "x", "--version", "new"], 2, "'new' is no version"),
    "exists": (["--name", "my-model"], 2, f"{WHEEL} exists; add --force"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG.values(), ids=WRONG)
def test_invalid_arguments(
    run: Run, tiny_bundle: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / WHEEL).write_text("mine")
    result = run("package", tiny_bundle, "-o", ".", *arguments)
    assert (result.code, result.err.count("\n")) == (code, 1)
    assert message in result.err
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL]
    assert (tmp_path / WHEEL).read_text() == "mine"
    assert run("package", tiny_bundle, "-o", ".", "--name", "my-model", "--force").code == 0


def test_a_damaged_bundle_is_not_packaged(run: Run, fresh_bundle: Path, tmp_path: Path) -> None:
    content = bytearray((fresh_bundle / "llm.gguf").read_bytes())
    content[-1] ^= 1
    (fresh_bundle / "llm.gguf").write_bytes(content)
    result = run("package", fresh_bundle, "--name", "my-model", "-o", "dist")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "llm.gguf: its SHA-256 differs" in result.err
    assert not (tmp_path / "dist").exists()
