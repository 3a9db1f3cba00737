"""Fixtures shared by all tests, and a temporary cache folder instead of the user's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mtllm_edge.backends.cpu import configure_openmp

configure_openmp()  # before OpenMP is loaded: the tests share their cores
from tests.fixtures.tiny_bundle import make_tiny_bundle  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("MTLLM_EDGE_CACHE")
    os.environ["MTLLM_EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["MTLLM_EDGE_CACHE"]
    else:
        os.environ["MTLLM_EDGE_CACHE"] = before


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights, shared by all tests; read only."""
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def fresh_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle` that the test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "fresh"))


@pytest.fixture(scope="session")
def tiny_variant(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Bundles with other arguments of `make_tiny_bundle`, each made once; read only."""
    bundles: dict[tuple[tuple[str, object], ...], Path] = {}

    def make(**keywords: object) -> Path:
        key = tuple(sorted(keywords.items()))
        if key not in bundles:
            bundles[key] = make_tiny_bundle(tmp_path_factory.mktemp("variant") / "bundle", **keywords)  # type: ignore[arg-type]
        return bundles[key]

    return make
