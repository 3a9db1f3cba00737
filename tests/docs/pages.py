"""Fenced blocks of Markdown pages, with the comment before each, and links.

A comment before a fence controls the test of the block::

    <!-- not run: needs pip -->     the block is not run; `NOT_RUN` lists what such blocks may contain
    <!-- exit code 2 -->            its last command fails with the message in the `text` block after it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NOT_RUN = (
    *("pip ", "make ", "apt-get ", "brew ", "accelerate launch ", "CMAKE_ARGS=", "python3 -m venv ", ". .venv/"),
    "pyinstaller ",
)
"""How the lines of a block begin that only a person runs: package managers, compilers, several GPUs."""

_FENCE = re.compile(r"(\s*)(`{3,})\s*(\w*)")
_MARK = re.compile(r"\s*<!-- (not run: .+|exit code \d+) -->\s*")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """Of the opening fence, from 1."""
    language: str
    text: str
    mark: str | None
    """What the comment before it says."""

    @property
    def place(self) -> str:
        """Page and line number."""
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the block is run."""
        return self.language in ("sh", "python") and not (self.mark or "").startswith("not run")

    @property
    def exit_code(self) -> int:
        """Expected exit code of the last command."""
        return int(self.mark.removeprefix("exit code ")) if self.mark and self.mark.startswith("exit code ") else 0

    def commands(self) -> list[str]:
        """Commands of a shell block: continued lines joined, comments and empty lines removed."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    blocks: list[Block] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    opening: tuple[int, str, str, str] | None = None
    mark, inner = None, list[str]()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if opening is None and fence:
            opening, inner = (number, fence[1], fence[2], fence[3]), []
        elif opening is not None and line.strip() == opening[2]:
            text = "\n".join(inner_line.removeprefix(opening[1]) for inner_line in inner) + "\n"
            blocks.append(Block(path.name, opening[0], opening[3], text, mark))
            opening, mark = None, None
        elif opening is not None:
            inner.append(line)
        elif line.strip():
            comment = _MARK.fullmatch(line)
            mark = comment[1] if comment else None
    assert opening is None, f"{path.name}:{opening and opening[0]} is not closed"
    return blocks


def links_of(path: Path) -> list[str]:
    """Return the targets of links and images of a page, outside of its blocks."""
    text = re.sub(r"^(\s*)(`{3,}).*?^\1\2\s*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return _LINK.findall(text)
