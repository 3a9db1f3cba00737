"""The structure of the source tree: few entries per folder, imports in one direction, short modules and functions."""

from __future__ import annotations

import ast
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from tests.tools.architecture import MARKER, PAGE, ROOT, SOURCE_ROOTS, Module, find_cycles, generated_page, read_modules

MODULES = read_modules()
ENTRIES = {"mtllm_edge": 20, "mtllm_edge_train": 12, "mtllm_edge_export": 12, "mtllm_edge_bench": 10}
"""Most files and folders that a package's top level may hold, ``__init__`` and ``__main__`` aside."""
LAYERS = {
    "mtllm_edge": (
        ("errors", "extras", "safe_text"),
        ("console", "inputs", "files", "languages"),
        ("bundle", "tokenization"),
        ("backends", "tasks", "jobs"),
        ("embedder", "translator"),
        ("classifier",),
        ("diagnostics", "server"),
        ("frozen", "_pyinstaller", "cli"),
    ),
}
"""Rooms from the lowest layer up: a room imports from lower layers, or from rooms of its own layer without a cycle."""


def entries(package: str) -> set[str]:
    folder = SOURCE_ROOTS[package] / package
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
    return files | {path.parent.name for path in folder.glob("*/*.py")}


@pytest.mark.parametrize("package", ENTRIES)
def test_a_package_opens_on_few_entries(package: str) -> None:
    assert len(entries(package)) <= ENTRIES[package], sorted(entries(package))


@pytest.mark.parametrize("folder", sorted({module.path.parent for module in MODULES.values()}))
def test_a_folder_holds_at_most_20_entries(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len([name for name in names if name not in ("__init__.py", "__main__.py")]) <= 20


def test_no_modules_import_each_other() -> None:
    # A package's own __init__ hands names on; `from mtllm_edge import __version__` is no dependency on them.
    edges = {name: module.imports(MODULES) - SOURCE_ROOTS.keys() for name, module in MODULES.items()}
    assert find_cycles(edges) == []


def room_edges() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = defaultdict(set)
    for module in MODULES.values():
        if module.name not in SOURCE_ROOTS:
            targets = {MODULES[name].room for name in module.imports(MODULES) - SOURCE_ROOTS.keys()}
            edges[module.room] |= targets - {module.room}
    return dict(edges)


def test_no_rooms_import_each_other() -> None:
    assert find_cycles(room_edges()) == []


@pytest.mark.parametrize("package", LAYERS)
def test_a_room_imports_from_its_layer_and_below(package: str) -> None:
    heights = {f"{package}.{room}": height for height, layer in enumerate(LAYERS[package]) for room in layer}
    edges = {room: targets for room, targets in room_edges().items() if room.partition(".")[0] == package}
    assert set(edges) - {f"{package}.__main__"} <= heights.keys()
    upward = [
        (room, target)
        for room, targets in edges.items()
        for target in targets
        if room in heights and target in heights and heights[target] > heights[room]
    ]
    assert upward == []


def test_packages_import_in_one_direction() -> None:
    allowed = {
        "mtllm_edge": set(),
        "mtllm_edge_train": {"mtllm_edge"},
        "mtllm_edge_export": {"mtllm_edge", "mtllm_edge_train"},
        "mtllm_edge_bench": {"mtllm_edge", "mtllm_edge_train", "mtllm_edge_export"},
    }
    for module in MODULES.values():
        package = module.name.partition(".")[0]
        imported = {name.partition(".")[0] for name in module.imports(MODULES)} - {package}
        assert imported <= allowed[package], module.name


def scripts() -> list[Module]:
    return [Module(path.stem, path) for path in sorted((ROOT / "benchmarks").glob("*.py"))]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_modules_and_functions_are_short() -> None:
    lengths = {}
    for module in [*MODULES.values(), *scripts()]:
        assert len(module.path.read_text(encoding="utf-8").splitlines()) <= 400, module.path
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{module.path.relative_to(ROOT)}: {node.name}"] = code_lines(node)
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 23


def test_every_module_says_what_it_holds() -> None:
    assert [name for name, module in MODULES.items() if not module.summary.endswith((".", ":"))] == []


def test_the_page_is_generated_from_the_docstrings() -> None:
    _, marker, generated = PAGE.read_text(encoding="utf-8").partition(MARKER)
    assert marker
    assert generated == generated_page(), "run: python -m tests.tools.architecture"
