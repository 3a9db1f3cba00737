"""A whole bundle of some 100 kilobytes with random weights, made without torch.

Its numbers mean nothing, but every file is real: the engines load it and compute with it, and the tests compare the
results with plain numpy. `make_tiny_bundle` returns the folder; the same seed gives the same weights.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import safetensors.numpy
import tokenizers
from ctranslate2.specs import common_spec, transformer_spec
from numpy.typing import NDArray

from mtllm_edge import manifest
from mtllm_edge.bundle import list_files
from mtllm_edge.kinds import Kind
from mtllm_edge.machine import read_cpu

SEED = 5
D_MODEL = 16
ENCODER_LAYERS = 2
ENCODER_HEADS = 2
ENCODER_FF = 32
MAX_TOKENS = 64

N_EMBD = 32
N_LAYER = 2
N_HEAD = 4
N_HEAD_KV = 2
N_FF = 64
ROPE_BASE = 10000.0
RMS_EPS = 1e-5
STUB_ROWS = 32

_HAS_VNNI = "(x86_64)" not in read_cpu().model or any("vnni" in flag for flag in read_cpu().flags)
INT8_COSINE = 0.995 if _HAS_VNNI else 0.7
"""What CTranslate2's int8 keeps of float32 states. Where x86 has no VNNI, sums of two products saturate at 16 bits;
random weights suffer most of all (0.79 was seen; the reference encoder keeps 0.997)."""

TASKS = {
    "topic": ("science", "sports", "travel"),
    "sentiment": ("negative", "neutral", "positive"),
}

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäöüßéèñçığ0123456789.,;:!?'-()"
    "абвгдежзийклмнопрстуфхцчшщъыьэюя"
    "αβγδεζηθικλμνξοπρστυφχψω"
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"
    "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहािीुूेैोौ्ं"
    "的一是在不了有和人这中大为上个国我以要他時來用们"
    "가나다라마바사아자차카타파하"
)
WORDS = ("▁the", "▁a", "▁is", "▁good", "▁bad", "▁team", "▁match", "▁hotel", "ing", "en", "er", "▁не", "▁और")

Quantization = Literal["f32", "q8_0", "q4_0"]
Attention = Literal["causal", "bidirectional"]
Architecture = manifest.Architecture


def make_tiny_bundle(
    folder: Path,
    *,
    quantization: Quantization = "f32",
    encoder_quantization: Literal["float32", "int8"] = "float32",
    attention: Attention = "causal",
    architecture: Architecture = "llama",
    tasks: dict[str, tuple[str, ...]] | None = None,
    stride: int = 1,
    kinds: dict[str, Kind] | None = None,
    languages: tuple[str, ...] = (),
    seed: int = SEED,
) -> Path:
    """Write a valid bundle into `folder`, which is made where it does not exist, and return it.

    Tasks are given by their labels, none for multiple choice; `kinds` names those that do not read single texts. With
    `languages`, a text begins with the token of its language, as in NLLB.
    """
    tasks = TASKS if tasks is None else tasks
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder / "tokenizer.json", languages)
    write_encoder(folder / "encoder", encoder_weights(rng, len(vocabulary)), vocabulary, encoder_quantization)
    bridge = {"weight": _normal(rng, N_EMBD, stride * D_MODEL), "bias": _normal(rng, N_EMBD) * 0.1}
    safetensors.numpy.save_file(bridge, folder / "bridge.safetensors")
    write_llm(folder / "llm.gguf", llm_weights(rng), quantization=quantization, architecture=architecture)
    for name, labels in tasks.items():
        (folder / "tasks" / name).mkdir(parents=True)
        head = {"weight": _normal(rng, len(labels) or 1, N_EMBD)}
        safetensors.numpy.save_file(head, folder / "tasks" / name / "head.safetensors")
    (folder / "LICENSES").mkdir()
    (folder / "LICENSES" / "tiny.txt").write_text("Random numbers; no rights reserved.\n", encoding="utf-8")
    write_manifest(folder, quantization, encoder_quantization, attention, architecture, tasks, stride, kinds, languages)
    return folder


def write_manifest(
    folder: Path,
    quantization: Quantization = "f32",
    encoder_quantization: Literal["float32", "int8"] = "float32",
    attention: Attention = "causal",
    architecture: Architecture = "llama",
    tasks: dict[str, tuple[str, ...]] | None = None,
    stride: int = 1,
    kinds: dict[str, Kind] | None = None,
    languages: tuple[str, ...] = (),
) -> None:
    """Write the `bundle.json` that fits the files now in `folder`."""
    tasks = TASKS if tasks is None else tasks
    licence = "LICENSES/tiny.txt"
    parts = manifest.Manifest(
        format_version=manifest.FORMAT_VERSION,
        name="tiny",
        created_with="tests/tiny.py",
        encoder=manifest.Encoder(
            family="bert",
            backend="ctranslate2",
            quantization=encoder_quantization,
            d_model=D_MODEL,
            max_tokens=MAX_TOKENS,
            prefix_tokens=("{language}",) if languages else ("<s>",),
            suffix_tokens=("</s>",),
        ),
        bridge=manifest.Bridge.of_stride(stride),
        llm=manifest.Llm(
            architecture=architecture,
            n_embd=N_EMBD,
            n_layer=N_LAYER,
            quantization=quantization,
            attention=attention,
            pooling="mean",
        ),
        tasks={
            name: manifest.Task(
                kind=(kinds or {}).get(name, "sequence"), labels=labels, head=f"tasks/{name}/head.safetensors"
            )
            for name, labels in tasks.items()
        },
        languages=languages,
        sources=tuple(
            manifest.Source(part=part, name="random numbers", license="CC0-1.0", file=licence)
            for part in ("encoder", "llm", "tokenizer")
        ),
        parity=(manifest.Parity(component="pooled", cosine_min=1.0, cosine_mean=1.0, fvu=0.0, samples=1),),
        files=list_files(folder),
    )
    (folder / manifest.MANIFEST_NAME).write_bytes(parts.to_json())


def write_tokenizer(path: Path, languages: tuple[str, ...] = ()) -> list[str]:
    """Write a Unigram `tokenizer.json` over the letters of several scripts; returns the vocabulary in id order.

    The tokens of languages, which have the names of their codes, stand last.
    """
    pieces = [*SPECIAL, "▁", *WORDS, *dict.fromkeys(SCRIPTS)]
    scores = [0.0] * len(SPECIAL) + [-2.0 if len(piece) > 1 else -6.0 for piece in pieces[len(SPECIAL) :]]
    model = tokenizers.models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=SPECIAL.index("<unk>"))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([*SPECIAL, *languages])
    tokenizer.save(str(path))
    return [*pieces, *languages]


def encoder_weights(rng: np.random.Generator, vocabulary_size: int) -> dict[str, NDArray[np.float32]]:
    """Random weights of a BERT-like encoder; a linear `x` is ``x.weight`` (out, in) and ``x.bias``, a norm likewise."""
    weights = {
        "word": _normal(rng, vocabulary_size, D_MODEL),
        "type": _normal(rng, 2, D_MODEL) * 0.2,  # what all texts share is small, so that their vectors differ
        "position": _normal(rng, MAX_TOKENS, D_MODEL) * 0.3,
    }
    shapes = {"qkv": (3 * D_MODEL, D_MODEL), "out": (D_MODEL, D_MODEL)}
    shapes |= {"up": (ENCODER_FF, D_MODEL), "down": (D_MODEL, ENCODER_FF)}
    norms = ["norm"]
    for layer in range(ENCODER_LAYERS):
        norms += [f"{layer}.attention_norm", f"{layer}.ff_norm"]
        for name, shape in shapes.items():
            weights[f"{layer}.{name}.weight"] = _normal(rng, *shape) * 0.5
            weights[f"{layer}.{name}.bias"] = _normal(rng, shape[0]) * 0.1
    for name in norms:
        weights[f"{name}.weight"] = 1 + _normal(rng, D_MODEL) * 0.1
        weights[f"{name}.bias"] = _normal(rng, D_MODEL) * 0.1
    return weights


def write_encoder(
    folder: Path, weights: dict[str, NDArray[np.float32]], vocabulary: list[str], quantization: str
) -> None:
    """Write the CTranslate2 folder of `encoder_weights`: post-norm, with token types, as for BERT."""
    encoder = transformer_spec.TransformerEncoderSpec(
        ENCODER_LAYERS,
        ENCODER_HEADS,
        pre_norm=False,
        activation=common_spec.Activation.GELU,
        layernorm_embedding=True,
        num_source_embeddings=2,
        embeddings_merge=common_spec.EmbeddingsMerge.ADD,
    )
    spec = transformer_spec.TransformerEncoderModelSpec(encoder)
    encoder.scale_embeddings = False
    encoder.embeddings[0].weight, encoder.embeddings[1].weight = weights["word"], weights["type"]
    encoder.position_encodings.encodings = weights["position"]

    def put(target: Any, name: str) -> None:
        target.weight, target.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def put_norm(target: Any, name: str) -> None:
        target.gamma, target.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]

    put_norm(encoder.layernorm_embedding, "norm")
    for index, layer in enumerate(encoder.layer):
        put(layer.self_attention.linear[0], f"{index}.qkv")
        put(layer.self_attention.linear[1], f"{index}.out")
        put_norm(layer.self_attention.layer_norm, f"{index}.attention_norm")
        put(layer.ffn.linear_0, f"{index}.up")
        put(layer.ffn.linear_1, f"{index}.down")
        put_norm(layer.ffn.layer_norm, f"{index}.ff_norm")
    spec.register_vocabulary(vocabulary)
    spec.config.unk_token = "<unk>"
    spec.config.layer_norm_epsilon = 1e-5
    spec.validate()
    spec.optimize(quantization=None if quantization == "float32" else quantization)
    folder.mkdir()
    spec.save(str(folder))


def llm_weights(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Random weights of a Llama body by GGUF name: matrices (out, in), rows of q and k in GGUF's order."""
    head = N_EMBD // N_HEAD
    weights = {"output_norm.weight": 1 + _normal(rng, N_EMBD) * 0.1}
    shapes = {
        "attn_q": (N_EMBD, N_EMBD),
        "attn_k": (N_HEAD_KV * head, N_EMBD),
        "attn_v": (N_HEAD_KV * head, N_EMBD),
        "attn_output": (N_EMBD, N_EMBD),
        "ffn_gate": (N_FF, N_EMBD),
        "ffn_up": (N_FF, N_EMBD),
        "ffn_down": (N_EMBD, N_FF),
    }
    for layer in range(N_LAYER):
        for name, shape in shapes.items():
            weights[f"blk.{layer}.{name}.weight"] = _normal(rng, *shape) / np.sqrt(np.float32(shape[1]))
        for name in ("attn_norm", "ffn_norm"):
            weights[f"blk.{layer}.{name}.weight"] = 1 + _normal(rng, N_EMBD) * 0.1
    return weights


def write_llm(
    path: Path,
    weights: dict[str, NDArray[np.float32]],
    *,
    quantization: Quantization = "f32",
    architecture: Architecture = "llama",
    embeddings: NDArray[np.float32] | None = None,
    add_fields: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> None:
    """Write the GGUF of `llm_weights`, matrices in `quantization`; headless, or with (STUB_ROWS, N_EMBD) embeddings.

    `add_fields` puts those of another family in.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(N_LAYER)
    writer.add_context_length(2048)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(STUB_ROWS)
    writer.add_tokenizer_model("none")
    add_fields(writer)
    writer.add_tensor(
        "token_embd.weight", np.zeros((STUB_ROWS, N_EMBD), np.float32) if embeddings is None else embeddings
    )
    kind = gguf.GGMLQuantizationType[quantization.upper()]
    for name, weight in weights.items():
        if weight.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, weight.astype(np.float32))
        else:
            writer.add_tensor(name, gguf.quantize(weight.astype(np.float32), kind), raw_dtype=kind)
    with contextlib.redirect_stdout(io.StringIO()):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    writer.close()


def make_gemma2(folder: Path) -> Path:
    """Give a bundle of this module an LLM of the family Gemma 2 instead of its own."""
    weights = llm_weights(np.random.default_rng(SEED))
    for layer in range(N_LAYER):
        for name in ("post_attention_norm", "post_ffw_norm"):
            weights[f"blk.{layer}.{name}.weight"] = np.full(N_EMBD, 0.9, np.float32)

    def add_fields(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(8)
        writer.add_sliding_window_pattern([True, False])
        writer.add_rope_freq_base_swa(100.0)
        writer.add_attn_logit_softcapping(2.0)

    write_llm(folder / "llm.gguf", weights, architecture="gemma2", add_fields=add_fields)
    write_manifest(folder, architecture="gemma2")
    return folder


def lora_weights(rng: np.random.Generator, rank: int = 2) -> dict[str, NDArray[np.float32]]:
    """Random halves of a LoRA on every matrix of `llm_weights`: ``.lora_a`` (rank, in) and ``.lora_b`` (out, rank)."""
    halves = {}
    for name, weight in llm_weights(np.random.default_rng(SEED)).items():
        if weight.ndim == 2:
            halves[f"{name}.lora_a"] = _normal(rng, rank, weight.shape[1]) * 0.3
            halves[f"{name}.lora_b"] = _normal(rng, weight.shape[0], rank) * 0.3
    return halves


def write_lora(
    path: Path, halves: dict[str, NDArray[Any]], *, architecture: str = "llama", fields: dict[str, Any] | None = None
) -> Path:
    """Write a GGUF adapter; `fields` replace the usual ones, None leaves one out."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (
        {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0} | (fields or {})
    ).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, np.float64):
            writer.add_float64(key, float(value))
        elif value is not None:
            writer.add_float32(key, value)
    for name, half in halves.items():
        writer.add_tensor(name, half)
    with contextlib.redirect_stdout(io.StringIO()):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    writer.close()
    return path


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)
