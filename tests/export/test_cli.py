"""The commands `export` and `join`, as a person calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mtllm_edge import Bundle
from mtllm_edge.errors import UsageError
from mtllm_edge_export import cli
from tests.fixtures.subprocesses import imported_by


def test_importing_the_commands_imports_nothing_heavy() -> None:
    assert not {"torch", "transformers", "gguf", "ctranslate2", "llama_cpp"} & imported_by("mtllm_edge_export.cli")


def test_export_then_join(checkpoint: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    arguments = [str(checkpoint), "--out", str(tmp_path / "parts"), "--without-llm", "--llm-quantization", "q4_0"]
    result = runner.invoke(cli.export, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for words in ("writing the encoder (bert, int8)", "writing the LLM (causal, q4_0)", "matrices of the LLM: 14 q4_0"):
        assert words in result.stderr
    for words in ("comparison with torch", "stack", "task topic", "encoder/model.bin", "llm.json"):
        assert words in result.stdout
    result = runner.invoke(
        cli.join, [str(tmp_path / "parts"), "--out", str(tmp_path / "bundle")], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "llm.gguf" in result.stdout
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert (manifest.encoder.quantization, manifest.llm.quantization) == ("int8", "q4_0")


def test_unknown_quantization_is_a_usage_error(checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(checkpoint), "--out", str(tmp_path / "b"), "--llm-quantization", "q3"]
    result = CliRunner().invoke(cli.export, arguments)
    assert result.exit_code == 2
    assert "q8_0" in result.stderr


@pytest.mark.parametrize(("command", "extra"), [(cli.export, "export"), (cli.join, "reference")])
def test_a_missing_extra_is_a_usage_error(
    command: object, extra: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtllm_edge.extras.missing_modules", lambda *_: ["gguf"])
    result = CliRunner().invoke(command, [str(checkpoint), "--out", str(tmp_path / "b")])  # type: ignore[arg-type]
    assert isinstance(result.exception, UsageError)
    assert f"pip install 'mtllm-edge[{extra}]'" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
