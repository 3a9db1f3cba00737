"""What llama.cpp's quantiser refuses comes back as one line, with its own reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtllm_edge.errors import EngineError
from mtllm_edge_export.quantization.llama_cpp import quantize_gguf


def test_refusal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"not a model")
    with pytest.raises(
        EngineError, match=r"cannot quantize .*junk\.gguf to q8_0, code [1-9]\d* \(.+\); choose"
    ) as caught:
        quantize_gguf(tmp_path / "junk.gguf", tmp_path / "out.gguf", "q8_0")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
