"""Wheel and sdist: built, installed into a new environment, used as the README's quickstart shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.docs.pages import blocks_of
from tests.fixtures.tiny_bundle import make_tiny_bundle

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SOURCES = ("mtllm_edge", "export", "train", "benchmarks/mtllm_edge_bench")
BUILD_SDIST = "import setuptools.build_meta as build, sys; print(build.build_sdist(sys.argv[1]))"
TOPICS = ("entertainment", "geography", "health", "politics", "science/technology", "sports", "travel")
MOODS = ("negative", "neutral", "positive")


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a program that must succeed, without this environment's PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    child = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, as building writes into it."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    options = ("--no-deps", "--no-index", "--no-cache-dir", "--quiet")
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", *options, wheel, cwd=folder)
    packages = next(folder.glob("**/site-packages"))
    # A path file in a folder that was itself added by one is not read, so the source tree is not importable.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return programs


def test_the_wheel_holds_the_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mtllm_edge/server/page.html", "mtllm_edge_export/parity_sentences.txt"} <= names
    packages = ("mtllm_edge", "mtllm_edge_train", "mtllm_edge_export", "mtllm_edge_bench")
    assert {f"{package}/py.typed" for package in packages} <= names
    licenses = {path.name for path in (ROOT / "export/mtllm_edge_export/licenses").glob("*.txt")}
    assert {f"mtllm_edge_export/licenses/{name}" for name in licenses} <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mtllm_edge").rglob("*.py")}
    assert modules <= names


def test_the_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    name = run(sys.executable, "-c", BUILD_SDIST, tmp_path, cwd=source).splitlines()[-1]
    rebuilt = build_wheel(tmp_path / name, tmp_path)
    assert rebuilt.name == wheel.name
    assert zipfile.ZipFile(rebuilt).namelist() == zipfile.ZipFile(wheel).namelist()


def test_the_quickstart_runs_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "build" / "reference", tasks={"topic": TOPICS, "sentiment": MOODS})
    (tmp_path / "mails.csv").write_text("id,text\n1,The lift is stuck.\n2,Thank you!\n", encoding="utf-8")
    where = run(environment / "python", "-c", "import mtllm_edge; print(mtllm_edge.__file__)", cwd=tmp_path)
    assert environment.parent.resolve() in Path(where.strip()).resolve().parents
    python = next(block for block in blocks_of(README) if block.language == "python")
    lines = run(environment / "python", "-c", python.text, cwd=tmp_path).splitlines()
    assert [line.split()[0] in TOPICS for line in lines] == [True, True]
    output = run(
        *(environment / "mtllm-edge", "classify", "-b", "build/reference", "-t", "sentiment", "mails.csv"),
        *("-o", "labeled.csv"),
        cwd=tmp_path,
    )
    assert output == ""
    header, *rows = (tmp_path / "labeled.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("id,text,label,confidence")
    assert [row.split(",")[0] for row in rows] == ["1", "2"]
    assert "Usage: mtllm-edge" in run(environment / "python", "-m", "mtllm_edge", "--help", cwd=tmp_path)
