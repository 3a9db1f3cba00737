"""Headers of every family's file are checked before llama.cpp, which would end the process, sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import gguf
import msgspec
import numpy as np
import pytest

from mtllm_edge.bundle import header_checks
from mtllm_edge.bundle.formats import gguf_schema
from mtllm_edge.bundle.formats.gguf import BOOL, read_header
from mtllm_edge.bundle.manifest import Architecture, LlmSpec
from mtllm_edge_export.llms.body import LlmBody, LlmSummary
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_train.checkpoints.llm_weights import open_llm_weights
from tests.fixtures.tiny_llms import FAMILIES, save_family

FEATURES = {"qwen3": "attn_q_norm", "gemma2": "post_ffw_norm", "gemma3_text": "attn_k_norm"}


def written(folder: Path, family: str) -> tuple[Path, LlmSpec]:
    save_family(folder / "llm", family)
    path = folder / "llm.gguf"
    summary: LlmSummary = write_llm(path, LlmBody(open_llm_weights(folder / "llm"), None, "causal"), "f32")
    llm = LlmSpec(
        architecture=summary.architecture,
        n_embd=summary.n_embd,
        n_layer=summary.n_layer,
        quantization="f32",
        attention="causal",
        pooling="mean",
    )
    return path, llm


def rewritten(path: Path, change: Callable[[str, Any], Any], *, without: str = "-") -> Path:
    """A copy with other numbers in its fields, or without some tensors."""
    reader = gguf.GGUFReader(path)
    target = path.with_suffix(".changed.gguf")
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = change(key, field.contents())
        if value is not None and field.types[0] != gguf.GGUFValueType.ARRAY:
            writer.add_key_value(key, value, field.types[0])
    for tensor in reader.tensors:
        if without not in tensor.name:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family: str, tmp_path: Path) -> None:
    path, llm = written(tmp_path, family)
    assert header_checks.check_llm(path, llm) == []
    if family in FEATURES:
        changed = rewritten(path, lambda _, value: value, without=FEATURES[family])
        (problem,) = header_checks.check_llm(changed, llm)
        assert problem.startswith(f"lacks the tensors blk.0.{FEATURES[family]}.weight")


@pytest.mark.parametrize(
    ("family", "key", "value", "problem"),
    [
        ("gemma2", "gemma2.attention.sliding_window", 0, "sliding_window is 0, expected 1 to"),
        ("gemma3_text", "gemma3.attention.sliding_window", None, "sliding_window is None, expected 1 to"),
        ("gemma2", "gemma2.attn_logit_softcapping", 0.0, "attn_logit_softcapping is 0.0, expected above 0"),
        ("gemma2", "gemma2.attn_logit_softcapping", None, "attn_logit_softcapping is None"),
        ("qwen3", "qwen3.attention.value_length", 16, "value_length is 16, expected 24"),
        ("qwen3", "qwen3.rope.dimension_count", 16, "dimension_count is 16, expected 24"),
        ("qwen3", "qwen3.attention.key_length", 0, "key_length is 0"),
        ("qwen2", "qwen2.attention.head_count", 2, "2 heads of 16 do not make a width of 64"),
        ("llama", "llama.rope.scaling.type", "yarn", "scaling.type is 'yarn', expected 'linear'"),
        (
            "llama",
            "llama.rope.scaling.factor",
            None,
            "scaling.type requires llama.rope.scaling.factor, and the reverse",
        ),
        ("gemma2", "gemma2.attention.sliding_window", 2**26, "sliding_window is 67108864, expected 1 to 8388608"),
        ("gemma3_text", "gemma3.rope.freq_base_swa", 0.0, "freq_base_swa is 0.0, expected above 0"),
    ],
)
def test_numbers_that_would_end_the_process(family: str, key: str, value: Any, problem: str, tmp_path: Path) -> None:
    path, llm = written(tmp_path, family)
    changed = rewritten(path, lambda name, own: value if name == key else own)
    assert problem in "; ".join(header_checks.check_llm(changed, llm))


def test_a_window_pattern_of_another_depth(tmp_path: Path) -> None:
    path, llm = written(tmp_path, "gemma2")
    header = read_header(path)
    key = "gemma2.attention.sliding_window_pattern"
    assert header.arrays == {key: (BOOL, llm.n_layer)}
    shorter = dataclasses.replace(header, arrays={key: (BOOL, llm.n_layer - 1)})
    problems = gguf_schema.llm_problems(shorter, llm)
    assert problems == [f"{key} is no list of 4 truth values"]


def test_biases_belong_to_qwen2(tmp_path: Path) -> None:
    path, llm = written(tmp_path, "qwen2")
    assert (
        "lacks the tensors blk.0.attn_k.bias"
        in header_checks.check_llm(rewritten(path, lambda _, own: own, without="attn_k.bias"), llm)[0]
    )


def test_the_manifest_knows_the_architectures() -> None:
    known = {"attention": "causal", "n_embd": 8, "n_layer": 1, "pooling": "mean", "quantization": "f32"}
    for architecture in get_args(Architecture):
        assert msgspec.convert({**known, "architecture": architecture}, LlmSpec).architecture == architecture
    with pytest.raises(msgspec.ValidationError, match="architecture"):
        msgspec.convert({**known, "architecture": "gpt2"}, LlmSpec)
