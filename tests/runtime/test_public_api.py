from __future__ import annotations

import importlib.metadata
import inspect
from pathlib import Path

import pytest

import mtllm_edge
from mtllm_edge import errors


def test_public_names() -> None:
    assert mtllm_edge.__all__ == ["Bundle", "Classifier", "Embedder", "MtllmError", "Prediction"]
    assert mtllm_edge.__all__ == sorted(mtllm_edge.__all__)
    assert mtllm_edge.__version__ in (_installed_version(), "0+unknown")
    assert (Path(mtllm_edge.__file__).parent / "py.typed").is_file()


def _installed_version() -> str | None:
    try:
        return importlib.metadata.version("mtllm-edge")
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize("name", mtllm_edge.__all__)
def test_public_names_have_docstrings(name: str) -> None:
    thing = getattr(mtllm_edge, name)
    assert inspect.getdoc(thing)
    for member, value in vars(thing).items():
        if member.startswith("_") or not (callable(value) or isinstance(value, (property, classmethod))):
            continue
        assert inspect.getdoc(value), f"{name}.{member}"
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        assert "return" in inspect.get_annotations(function), f"{name}.{member}"


def test_error_tree() -> None:
    kinds = {errors.UsageError: 2, errors.DataError: 1, errors.ModelError: 1, errors.EngineError: 1}
    for kind, code in kinds.items():
        assert issubclass(kind, mtllm_edge.MtllmError)
        assert kind.exit_code == code
        assert kind.__name__ in (errors.__doc__ or "")
    assert mtllm_edge.MtllmError is errors.MtllmError
