"""Makes tiny random models of true architecture, and a checkpoint that stands on them. Nothing is downloaded.

Byte-level tokenizers, so that every script has tokens; a few layers of a few dozen dimensions; weights large enough
that attention and gates matter. Run as a script it writes one checkpoint: ``python tiny_checkpoint.py FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from mtllm_edge.manifest import Bridge, Source
from mtllm_edge_train.config import (
    CHECKPOINT_VERSION,
    CONFIG_NAME,
    EncoderConfig,
    LlmConfig,
    LoraConfig,
    StackConfig,
    TaskConfig,
)

Family = Literal["bert", "xlm-roberta", "bart", "m2m_100", "m2m", "mbart", "marian"]
LANGUAGES = ("deu_Latn", "eng_Latn", "tam_Taml")
MAX_TOKENS = 160
_WIDTH_ENCODER = 32


def save_encoder(folder: Path, family: Family, *, width: int = _WIDTH_ENCODER, layers: int = 2) -> None:
    """An encoder, with a decoder where its family has one, and its tokenizer; ``m2m_100`` has NLLB's."""
    folder.mkdir(parents=True)
    tokenizer = _TOKENIZERS[family]()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    rows = tokenizer.get_vocab_size() + 3  # like real models, some rows of the table have no token
    _model(family, rows, width, layers).save_pretrained(folder)


def _model(family: Family, rows: int, width: int, layers: int) -> Any:
    spread = 0.2 * (_WIDTH_ENCODER / width) ** 0.5
    if family in ("bert", "xlm-roberta"):
        settings = {
            "vocab_size": rows,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 2 * width,
            "max_position_embeddings": 192,
            "layer_norm_eps": 1e-3,  # far from CTranslate2's default, so that a lost setting shows
            "initializer_range": spread,
        }
        if family == "bert":
            return transformers.BertModel(transformers.BertConfig(**settings), add_pooling_layer=False)
        return transformers.XLMRobertaModel(
            transformers.XLMRobertaConfig(**settings, type_vocab_size=1, pad_token_id=1), add_pooling_layer=False
        )
    settings = {
        "vocab_size": rows,
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * width,
        "decoder_ffn_dim": 2 * width,
        "max_position_embeddings": 192,
        "scale_embedding": family != "bart",
        "init_std": spread,
    }
    match family:
        case "bart":
            return transformers.BartForConditionalGeneration(transformers.BartConfig(**settings))
        case "mbart":
            return transformers.MBartForConditionalGeneration(transformers.MBartConfig(**settings))
        case "marian":
            more = {"pad_token_id": rows - 1, "decoder_start_token_id": rows - 1, "activation_function": "swish"}
            return transformers.MarianMTModel(transformers.MarianConfig(**settings, **more))
    return transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**settings))


def save_llm(folder: Path, *, width: int = 64, layers: int = 3, rope: dict[str, object] | None = None) -> None:
    """A Llama with grouped-query attention."""
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 500.0},
    )
    model = transformers.LlamaModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)


def random_lora(width: int, layers: int, rank: int = 4) -> dict[str, np.ndarray]:
    """An adapter of all linear layers that changes the output plainly."""
    rng = np.random.default_rng(3)
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width // 2, width),
        "self_attn.v_proj": (width // 2, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (2 * width, width),
        "mlp.up_proj": (2 * width, width),
        "mlp.down_proj": (width, 2 * width),
    }
    lora = {}
    for layer in range(layers):
        for module, (rows, columns) in shapes.items():
            stem = f"layers.{layer}.{module}"
            lora[f"{stem}.lora_A"] = (rng.standard_normal((rank, columns)) * 0.1).astype(np.float32)
            lora[f"{stem}.lora_B"] = (rng.standard_normal((rows, rank)) * 0.2).astype(np.float32)
    return lora


def save_checkpoint(
    folder: Path,
    *,
    family: Family = "bert",
    attention: Literal["causal", "bidirectional"] = "causal",
    width: int = 64,
    layers: int | None = 2,
    stride: int = 1,
    more_tasks: Mapping[str, TaskConfig] = MappingProxyType({}),
) -> Path:
    """A trained-looking checkpoint: encoder and LLM folders inside it, bridge, adapter, two heads and those wanted."""
    rng = np.random.default_rng(4)
    save_encoder(folder / "models" / "encoder", family)
    save_llm(folder / "models" / "llm", width=width)
    kept = layers or 3
    config = StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name="tiny",
        encoder=EncoderConfig(source="models/encoder", max_tokens=MAX_TOKENS),
        bridge=Bridge.of_stride(stride),
        llm=LlmConfig(source="models/llm", layers=layers, attention=attention),
        lora=LoraConfig(rank=4, alpha=8.0),
        tasks={
            "topic": TaskConfig(kind="sequence", labels=("a", "b", "c", "d")),
            "sentiment": TaskConfig(kind="sequence", labels=("negative", "neutral", "positive")),
            **more_tasks,
        },
        sources=(
            Source(part="encoder", name="tiny encoder", license="MIT"),
            Source(part="llm", name="tiny llm", license="Apache-2.0"),
            Source(part="task topic", name="tiny texts", license="CC-BY-SA-4.0"),
        ),
    )
    folder.joinpath(CONFIG_NAME).write_bytes(config.to_json())
    bridge = {
        "weight": rng.standard_normal((width, stride * _WIDTH_ENCODER)).astype(np.float32),
        "bias": rng.standard_normal(width).astype(np.float32),
    }
    save_file(bridge, folder / "bridge.safetensors")
    save_file(random_lora(width, kept), folder / "lora.safetensors")
    folder.joinpath("tasks").mkdir()
    topic = {"weight": rng.standard_normal((4, width)).astype(np.float32)}
    sentiment = {
        "weight": rng.standard_normal((3, width)).astype(np.float32),
        "bias": rng.standard_normal(3).astype(np.float32),
    }
    save_file(topic, folder / "tasks" / "topic.safetensors")
    save_file(sentiment, folder / "tasks" / "sentiment.safetensors")
    for name, task in more_tasks.items():
        head = {"weight": rng.standard_normal((task.rows, width)).astype(np.float32)}
        save_file(head, folder / "tasks" / f"{name}.safetensors")
    return folder


def _bert_tokenizer() -> Tokenizer:
    return _byte_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], unknown="[UNK]", frame=("[CLS]", "[SEP]"))


def _sentence_tokenizer(first: str | None, languages: tuple[str, ...] = ()) -> Tokenizer:
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    frame = (first, "</s>") if first else ("</s>",)
    return _byte_tokenizer(specials, unknown="<unk>", frame=frame, after=languages)


_TOKENIZERS: dict[Family, Callable[[], Tokenizer]] = {
    "bert": _bert_tokenizer,
    "xlm-roberta": lambda: _sentence_tokenizer("<s>"),
    "bart": lambda: _sentence_tokenizer("<s>"),
    "m2m_100": lambda: _sentence_tokenizer("eng_Latn", LANGUAGES),
    "m2m": lambda: _sentence_tokenizer("__en__", ("__de__", "__en__", "__ta__")),
    "mbart": lambda: _sentence_tokenizer("en_XX", ("de_DE", "en_XX", "ta_IN")),
    "marian": lambda: _sentence_tokenizer(None),
}


def _byte_tokenizer(
    specials: list[str], *, unknown: str, frame: tuple[str, ...], after: tuple[str, ...] = ()
) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in [*specials, *after]])
    ids = [(token, tokenizer.token_to_id(token)) for token in frame]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*frame[:-1], "$A", frame[-1]]),
        pair=" ".join([*frame[:-1], "$A", frame[-1], "$B", frame[-1]]),
        special_tokens=ids,
    )
    return tokenizer


if __name__ == "__main__":
    save_checkpoint(Path(sys.argv[1]))
