"""Where the LLM is looked for: folders and files here, hub ids in the hub's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from mtllm_edge.errors import ModelError
from mtllm_edge_export.llms.source import open_llm, source_digest
from tests.fixtures.tiny_checkpoint import save_llm


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A hub without the network: calls are kept, and answered with what `answer` holds."""
    calls: list[tuple[str, Any]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        calls.append((name, allow_patterns))
        raise OSError("no such repository\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_relative_folder_starts_at_the_checkpoint(tmp_path: Path, hub: list[tuple[str, Any]]) -> None:
    save_llm(tmp_path / "models" / "llm", layers=1)
    assert open_llm("models/llm", tmp_path).config["num_hidden_layers"] == 1
    assert hub == []


def test_a_hub_id_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llm(tmp_path / "cache", layers=1)
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_llm("someone/some-llama.1B", tmp_path).config["hidden_size"] == 64
    assert asked == {"name": "someone/some-llama.1B", "allow_patterns": ["config.json", "*.safetensors"]}


def test_a_hub_that_refuses_is_one_line(tmp_path: Path, hub: list[tuple[str, Any]]) -> None:
    with pytest.raises(ModelError) as caught:
        open_llm("someone/nothing", tmp_path)
    assert str(caught.value) == (
        "someone/nothing cannot be downloaded from the hub (no such repository); name a local folder"
    )


def test_a_path_is_no_hub_id(tmp_path: Path, hub: list[tuple[str, Any]]) -> None:
    with pytest.raises(ModelError, match="neither a GGUF file nor a model folder"):
        open_llm(str(tmp_path / "gone"), tmp_path)
    assert hub == []


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", layers=1)
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(ModelError, match=r"model\.safetensors is not readable"):
        open_llm("llm", tmp_path)


def test_digest_is_of_single_files_only(tmp_path: Path) -> None:
    (tmp_path / "llm.gguf").write_bytes(b"weights")
    assert source_digest("llm.gguf", tmp_path) == hashlib.sha256(b"weights").hexdigest()
    assert source_digest("someone/some-llama", tmp_path) is None
    (tmp_path / "folder").mkdir()
    assert source_digest("folder", tmp_path) is None
