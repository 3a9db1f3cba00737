"""Source tree of the four packages: modules, imports between them, and the generated part of docs/architecture.md.

``python -m tests.tools.architecture`` rewrites the page from the first lines of the module docstrings.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
MARKER = "<!-- Generated below this line: python -m tests.tools.architecture -->\n"
SOURCE_ROOTS = {
    "mtllm_edge": ROOT,
    "mtllm_edge_train": ROOT / "train",
    "mtllm_edge_export": ROOT / "export",
    "mtllm_edge_bench": ROOT / "benchmarks",
}


@dataclass(frozen=True)
class Module:
    """One Python file of a package."""

    name: str
    """Dotted name; that of the folder for an ``__init__``."""
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        """Syntax tree of the file."""
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    @property
    def is_package(self) -> bool:
        """Whether the file is the ``__init__`` of a folder."""
        return self.path.name == "__init__.py"

    @property
    def room(self) -> str:
        """Folder or file of the package's top level that holds the module; the package itself for its own files."""
        return ".".join(self.name.split(".")[:2])

    def imports(self, modules: dict[str, Module]) -> set[str]:
        """Names of the project's modules that this one imports, anywhere in the file."""
        names = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    names.add(submodule if submodule in modules else node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        return (names & modules.keys()) - {self.name}


def read_modules() -> dict[str, Module]:
    """All modules of the four packages by dotted name."""
    modules = {}
    for package, root in SOURCE_ROOTS.items():
        for path in sorted((root / package).rglob("*.py")):
            if "-" not in path.stem:  # PyInstaller's hooks are no modules
                parts = path.relative_to(root).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                modules[name] = Module(name, path)
    return modules


def find_cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of two nodes and more)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    cycles = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in edges.get(node, ()):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                cycles.append(sorted(component))

    for node in edges:
        if node not in order:
            visit(node)
    return cycles


def generated_page() -> str:
    """The generated part of the page: a section per package, a table per room."""
    modules = read_modules()
    lines = []
    for package in SOURCE_ROOTS:
        lines += ["", f"## {package}", "", f"{modules[package].summary}", "", "| file | content |", "|---|---|"]
        members = [module for name, module in modules.items() if name.startswith(f"{package}.")]
        lines += [_row(module) for module in members if module.room == module.name and not module.is_package]
        for room in (module for module in members if module.room == module.name and module.is_package):
            lines += ["", f"### {room.name.removeprefix(f'{package}.')}/", "", room.summary, ""]
            lines += ["| file | content |", "|---|---|"]
            lines += [_row(module) for module in members if module.room == room.name and module is not room]
    return "\n".join(lines) + "\n"


def _row(module: Module) -> str:
    path = "/".join(module.name.split(".")[1:]) + ("/" if module.is_package else ".py")
    return f"| `{path}` | {module.summary.replace('|', chr(92) + '|')} |"


def main() -> None:
    """Rewrite the generated part of the page."""
    written, _, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    PAGE.write_text(written + MARKER + generated_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
