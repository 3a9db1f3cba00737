"""The pages of docs/ and the README: all commands run, all links are valid, and the site builds.

The blocks of a page run in order, in a folder with the files of `workbench.py`. Commands are run as printed, except
that `running.AFFORDABLE` appends options to some.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest

import mtllm_edge
from mtllm_edge.cli.main import cli
from tests.docs import workbench
from tests.docs.pages import NOT_RUN, blocks_of, links_of
from tests.docs.running import PROGRAM, run_blocks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
ELSEWHERE = {
    "desktop.md": "its commands open a window and freeze a program: tests/examples runs what they run",
    "distributed.md": "its commands need Ray and Spark: likewise",
}
"""Pages whose commands other tests run."""
COMING = ("images/desktop.png",)
"""Files that pages link to; the site is built with empty ones until they are there."""

PAGES = sorted(path for path in DOCS.glob("*.md"))
RUN = [path for path in PAGES if path.name not in ELSEWHERE]
LAYOUTS = {
    "export.md": workbench.lay_out_training,
    "benchmarks.md": workbench.lay_out_stack,
    "training.md": workbench.lay_out_training,
}
"""Page -> what lies in its folder beside the files of the runtime."""


@pytest.fixture(scope="module")
def runtime_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime_files")
    workbench.lay_out_runtime(folder)
    return folder


@pytest.fixture
def page_folder(tmp_path: Path, runtime_files: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make the folder of a page the working folder."""

    def make(page: str) -> Path:
        folder = tmp_path / "page"
        shutil.copytree(runtime_files, folder)
        monkeypatch.chdir(folder)
        if page in LAYOUTS:
            LAYOUTS[page](folder)
            _hurry(monkeypatch)
        return folder

    return make


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure fewer batch sizes, each of which is a process, and compare fewer sentences with torch."""
    from mtllm_edge_bench.runner import measure
    from mtllm_edge_export import bundle

    sentences = bundle.load_sentences()[::8]
    monkeypatch.setattr(measure, "CANDIDATES", (512,))
    monkeypatch.setattr(bundle, "load_sentences", lambda: sentences)


@pytest.mark.parametrize("page", RUN, ids=lambda path: path.name)
def test_blocks_run(page: Path, page_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    page_folder(page.name)
    run_blocks(blocks_of(page), capsys)


def test_the_blocks_of_the_readme_run(page_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the runtime; of the extras' commands the options are read, and the pages of docs/ run such."""
    folder = page_folder(README.name)
    shutil.copytree(folder / "build" / "reference", folder / "my-bundle")  # it tells of exporting further down
    run_blocks(blocks_of(README), capsys, instead=parsed)


def parsed(words: list[str]) -> bool:
    """Read the arguments of an extra's command as it would itself, and do nothing; False for all other commands."""
    if words[0] != PROGRAM or words[1] in cli.commands:
        return False
    command: click.Command = cli
    name, *rest = words
    while isinstance(command, click.Group):
        name, *rest = rest
        subcommand = command.get_command(click.Context(command), name)
        assert subcommand is not None, f"README.md: no command {name}"
        command = subcommand
    try:
        command.make_context(name, rest)
    except click.UsageError as error:
        pytest.fail(f"README.md: {' '.join(words)}: {error.format_message()}")
    return True


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda path: path.name)
def test_skipped_blocks_contain_untestable_commands_only(page: Path) -> None:
    for block in blocks_of(page):
        if block.mark is None or block.is_run:
            continue
        other = [command for command in block.commands() if not command.startswith(NOT_RUN)]
        assert block.language == "sh", f"{block.place}: a {block.language} block is marked as not run"
        assert not other, f"{block.place}: {other[0]} could be run"


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda path: path.name)
def test_links_are_valid(page: Path) -> None:
    for link in links_of(page):
        target = link.partition("#")[0]
        if target and "://" not in target and not target.removeprefix("docs/").startswith(COMING):
            assert (page.parent / target).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda path: path.name)
def test_named_files_exist(page: Path) -> None:
    named = re.findall(r"`((?:benchmarks|reference)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


class _Loads(HTMLParser):
    """URLs that a browser loads for a page, and the page's anchors."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if "id" in attributes:
            self.anchors.add(attributes["id"])
        if tag == "link" and attributes.get("rel") not in ("canonical", "next", "prev"):
            self.urls.append(attributes.get("href", ""))
        self.urls += [attributes[name] for name in ("src", "srcset", "poster") if name in attributes and tag != "a"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built like by `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    (folder / "mtllm_edge").symlink_to(ROOT / "mtllm_edge")
    for name in COMING:
        if not (DOCS / name).exists():
            (folder / "docs" / name).parent.mkdir(exist_ok=True)
            (folder / "docs" / name).write_text("# Coming\n", encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    return folder / "site"


def test_the_site_loads_no_external_files(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        loads = _Loads(page.read_text(encoding="utf-8"))
        assert [url for url in loads.urls if "//" in url and not url.startswith("data:")] == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?https?:|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_the_reference_has_all_public_names(site: Path) -> None:
    anchors = _Loads((site / "api.html").read_text(encoding="utf-8")).anchors
    for name in mtllm_edge.__all__:
        thing = getattr(mtllm_edge, name)
        members = [member for member in vars(thing) if not member.startswith("_")]
        for path in (f"mtllm_edge.{name}", *(f"mtllm_edge.{name}.{member}" for member in members)):
            assert path in anchors or path.replace("mtllm_edge.MtllmError", "mtllm_edge.errors.MtllmError") in anchors


def test_the_format_page_has_every_key() -> None:
    import msgspec

    from mtllm_edge.bundle import manifest

    text = (DOCS / "bundle_format.md").read_text(encoding="utf-8")
    parts = [
        manifest.Manifest,
        manifest.EncoderSpec,
        manifest.BridgeSpec,
        manifest.LlmSpec,
        manifest.TaskSpec,
        manifest.WeightSource,
    ]
    for part in (*parts, manifest.Parity, manifest.FileEntry):
        for field in msgspec.structs.fields(part):
            assert f"`{field.name}`" in text, f"bundle_format.md says nothing of {part.__name__}.{field.name}"
    assert f"`format_version` | whole number | {manifest.FORMAT_VERSION}" in text


def test_all_extras_are_in_the_table() -> None:
    from mtllm_edge.extras import EXTRAS

    text = (DOCS / "install.md").read_text(encoding="utf-8")
    assert [extra for extra in EXTRAS if f"`{extra}`" not in text] == []


def test_all_errors_are_explained() -> None:
    from mtllm_edge import errors

    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    kinds = [kind.__name__ for kind in errors.MtllmError.__subclasses__() if kind.__module__ == errors.__name__]
    assert len(kinds) >= 4
    assert [name for name in kinds if f"## {name}\n" not in text] == []
