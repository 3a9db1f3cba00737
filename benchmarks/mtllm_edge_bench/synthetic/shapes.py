"""Models with random weights in the shapes of real models: their predictions are meaningless, their costs are real."""

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
from mtllm_edge_bench.synthetic.demo_corpus import LLM_SOURCE
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
"""As many labels as SIB-200 has topics."""
MAX_TOKENS = 512
LLM_SPECS_NAME = "llm_specs.json"
"""Manifest entries of an LLM in GGUF and, if available, ONNX."""
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
"""Configuration of NLLB-200-distilled-600M."""


@dataclass(frozen=True)
class SyntheticLlm:
    """A Llama to write."""

    name: str
    config: dict[str, Any]
    """Keys of transformers' `LlamaConfig`."""
    quantization: MatrixType
    source: str | None = None
    """Source of real weights; None is random weights."""

    @property
    def shape(self) -> LlmShape:
        """Dimensions of the body."""
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
_NEAR_LOSSLESS: MatrixType = "f16" if "avx2" in _FLAGS and "vnni" not in _FLAGS else "q8_0"
"""The faster of two nearly lossless types on this machine: 8-bit products are slow on x86 without VNNI."""
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
        _NEAR_LOSSLESS,
        source=LLM_SOURCE,
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
    """Write an LLM body and `LLM_SPECS_NAME`: real weights in GGUF and ONNX, random weights in GGUF.

    The speed of int8 in ONNX depends on the weights, as some matrices stay in float32. They are chosen on the token
    embeddings of packaged sentences in ASCII; the tokenizer splits others into bytes.
    """
    spec = _llm_spec(llm)
    if llm.source is None:
        write_random_llm(folder / LLM_NAME, llm.shape, llm.quantization)
        specs = [spec]
    else:
        weights = open_llm(llm.source, folder)
        body = LlmBody(weights, llm.shape.n_layer, spec.attention)
        write_llm(folder / LLM_NAME, body, llm.quantization)
        tokenizer, table_VE = load_llm_tokenizer(resolve_source(llm.source)), weights.tensor("embed_tokens.weight")
        texts = [sentence.text for sentence in load_sentences() if sentence.text.isascii()]
        inputs = [table_VE[ids] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        specs = [spec, add_llm_onnx(folder, body, spec, inputs, lambda _: None)]
    (folder / LLM_SPECS_NAME).write_bytes(msgspec.json.encode(specs))


def write_random_bundle(nllb: Path, body: Path, llm: SyntheticLlm, stride: int, folder: Path) -> None:
    """Assemble a bundle.

    Args:
        nllb: Folder of `write_random_nllb`.
        body: Folder of `write_llm_body`; its files are hard-linked if possible.
        llm: The LLM in `body`.
        stride: Stride of the bridge.
        folder: An existing empty folder.
    """
    rng = np.random.default_rng(stride)
    d_model = read_shapes(nllb / ENCODER_NAME / "model.bin")["encoder/embeddings_0/weight"][1]
    (folder / ENCODER_NAME).mkdir()
    for path in [*(nllb / ENCODER_NAME).iterdir(), nllb / TOKENIZER_NAME]:
        _link(path, folder / path.relative_to(nllb))
    specs = msgspec.json.decode((body / LLM_SPECS_NAME).read_bytes(), type=list[manifest.LlmSpec])
    for spec in specs:
        _link(body / spec.file, folder / spec.file)
    n_embd = llm.shape.n_embd
    # LLM inputs have about the norm of an LLM's token embeddings.
    weight = rng.standard_normal((n_embd, stride * d_model), np.float32) * np.float32(0.05 / (stride * d_model) ** 0.5)
    save_file({"weight": weight, "bias": np.zeros(n_embd, np.float32)}, folder / BRIDGE_NAME)
    task = _write_head(folder, n_embd)
    bundle = manifest.Manifest(
        format_version=manifest.FORMAT_VERSION,
        name=f"{llm.name}, stride {stride}",
        created_with=f"mtllm-edge {__version__}",
        encoder=manifest.EncoderSpec(
            family="m2m_100",
            backend="ctranslate2",
            quantization="int8",
            d_model=d_model,
            max_tokens=MAX_TOKENS,
            prefix_tokens=tokenizer.PREFIX_TOKENS,
            suffix_tokens=tokenizer.SUFFIX_TOKENS,
        ),
        bridge=manifest.BridgeSpec.of_stride(stride),
        llm=specs[0],
        llm_onnx=specs[1] if len(specs) > 1 else None,
        tasks={TASK: task},
        languages=(),
        sources=(),
        parity=(),
        files=list_files(folder),
    )
    (folder / manifest.MANIFEST_NAME).write_bytes(bundle.to_json())


def write_random_english_llm(llm: SyntheticLlm, folder: Path) -> None:
    """Write the English LLM of translate-test in the same shape, with a vocabulary."""
    vocabulary = int(llm.config["vocab_size"])
    write_random_llm(folder / LLM_NAME, llm.shape, llm.quantization, vocabulary=vocabulary)
    tokenizer.write_tokenizer(folder / TOKENIZER_NAME, vocabulary)
    english_llm = EnglishLlmManifest(
        name=llm.name,
        llm=_llm_spec(llm),
        max_tokens=MAX_TOKENS,
        prefix_tokens=(),
        suffix_tokens=(),
        tasks={TASK: _write_head(folder, llm.shape.n_embd)},
    )
    (folder / ENGLISH_LLM_NAME).write_bytes(msgspec.json.encode(english_llm))


def _llm_spec(llm: SyntheticLlm) -> manifest.LlmSpec:
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
    except OSError:  # another disk, or no hard links
        shutil.copyfile(source, target)
