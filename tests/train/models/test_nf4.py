"""The option `--base-dtype`, and 4-bit layers; bitsandbytes requires a GPU and is replaced."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mtllm_edge.errors import UsageError
from mtllm_edge_train.cli import options
from mtllm_edge_train.models import nf4
from mtllm_edge_train.models.stack import LlmBody, load_llm_body
from mtllm_edge_train.training.settings import LoopSettings
from tests.fixtures.tiny_checkpoint import save_llm


class Linear4bit(nn.Linear):
    """Has the arguments of the layer of bitsandbytes, without quantization."""

    def __init__(self, rows: int, columns: int, bias: bool, compute_dtype: Any, quant_type: str, device: str) -> None:
        super().__init__(rows, columns, bias=bias, device=device)
        self.compute_dtype, self.quant_type = compute_dtype, quant_type


def params4bit(data: torch.Tensor, requires_grad: bool, quant_type: str) -> nn.Parameter:
    assert quant_type == "nf4"
    return nn.Parameter(data, requires_grad=requires_grad)


def test_all_linear_layers_of_the_body_are_packed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("bitsandbytes")
    module.nn = SimpleNamespace(Linear4bit=Linear4bit, Params4bit=params4bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    save_llm(tmp_path / "llm")
    plain = load_llm_body(str(tmp_path / "llm"), 2, dtype=torch.bfloat16)
    body = load_llm_body(str(tmp_path / "llm"), 2, dtype=torch.bfloat16, nf4=True)
    packed = {name: layer for name, layer in body.named_modules() if isinstance(layer, nn.Linear)}
    assert len(packed) == 2 * 7
    assert {type(layer) for layer in packed.values()} == {Linear4bit}
    assert {(layer.compute_dtype, layer.quant_type) for layer in packed.values()} == {(torch.bfloat16, "nf4")}
    assert body.is_loaded_in_4bit
    ids = torch.arange(12).reshape(2, 6)
    read = [LlmBody(each, bidirectional=False, lora=None)(torch.ones_like(ids), ids_NL=ids) for each in (plain, body)]
    torch.testing.assert_close(read[1], read[0])
    assert isinstance(body, transformers.LlamaModel)


def test_nf4_needs_cuda_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nf4 needs --device cuda, this run is on cpu; choose bfloat16"):
        nf4.check_nf4("cpu")
    with pytest.raises(UsageError, match="this run is on cpu"):
        options.base_dtype("nf4", "bfloat16", "cpu")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match=r"pip install 'mtllm-edge\[cuda\]', or pass --base-dtype bfloat16"):
        nf4.check_nf4("cuda")


@pytest.mark.parametrize(
    ("base_dtype", "dtype", "device", "expected"),
    [
        (None, "bfloat16", "cuda", "nf4"),
        (None, "float32", "cuda:1", "nf4"),
        ("bfloat16", "bfloat16", "cuda", "bfloat16"),
        ("float32", "bfloat16", "cpu", "float32"),
        (None, "bfloat16", "cpu", None),
    ],
)
def test_nf4_is_the_default_on_cuda_only(
    monkeypatch: pytest.MonkeyPatch, base_dtype: str | None, dtype: str, device: str, expected: str | None
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(nf4, "check_nf4", checked.append)
    assert options.base_dtype(base_dtype, dtype, device) == expected
    assert checked == ([device] if expected == "nf4" else [])
    with pytest.raises(UsageError, match="choose the same for both"):
        options.base_dtype("bfloat16", "float32", device)


@pytest.mark.parametrize(
    ("base_dtype", "dtype", "expected"),
    [
        (None, "float32", torch.float32),
        (None, "bfloat16", torch.bfloat16),
        ("float32", "bfloat16", torch.float32),
        ("nf4", "bfloat16", torch.bfloat16),
    ],
)
def test_type_of_the_frozen_weights(base_dtype: str | None, dtype: str, expected: torch.dtype) -> None:
    settings = LoopSettings(batch_size=1, learning_rate=1.0, dtype=dtype, base_dtype=base_dtype)
    assert (settings.frozen_dtype, settings.nf4) == (expected, base_dtype == "nf4")
    assert settings.fingerprint_fields().get("base_dtype") == base_dtype
