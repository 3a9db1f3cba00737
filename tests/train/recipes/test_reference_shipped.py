"""The shipped reference model as a starting point of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from mtllm_edge.bundle.manifest import MANIFEST_NAME
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge_train.checkpoints.config import CHECKPOINT_VERSION, EncoderConfig, StackConfig, TaskConfig
from mtllm_edge_train.checkpoints.tensors import read_bridge, read_head, read_lora
from mtllm_edge_train.multilingual.translator import load_translator
from mtllm_edge_train.recipes.reference.shipped import restore_encoder, restore_stack, restore_translator
from mtllm_edge_train.recipes.reference.stages import LLM, LORA
from tests.fixtures.tiny_checkpoint import save_encoder

PARTS = Path(__file__).parents[3] / "reference" / "parts"
TRANSLATOR = PARTS.parent / "translator"
WORD = "embeddings.word_embeddings.weight"


def test_restoring_the_stack(tmp_path: Path) -> None:
    manifest = parse_manifest((PARTS / MANIFEST_NAME).read_bytes(), origin="reference/parts")
    config = StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name="shipped",
        encoder=EncoderConfig(source="encoder", max_tokens=512),
        bridge=manifest.bridge,
        llm=LLM,
        lora=LORA,
        tasks={name: TaskConfig(kind="sequence", labels=task.labels) for name, task in manifest.tasks.items()},
        sources=(),
    )
    restore_stack(PARTS, config, tmp_path)
    assert StackConfig.load(tmp_path) == config
    assert read_bridge(tmp_path)[0].shape == (manifest.llm.n_embd, manifest.bridge.stride * manifest.encoder.d_model)
    shipped, restored = load_file(PARTS / "lora.safetensors"), read_lora(tmp_path)
    assert restored.keys() == shipped.keys()
    assert all((restored[name] == tensor).all() for name, tensor in shipped.items())
    for name, task in manifest.tasks.items():
        np.testing.assert_array_equal(read_head(tmp_path, name)[0], load_file(PARTS / task.head)["weight"])


def test_new_word_embeddings_follow_those_of_e5(tmp_path: Path) -> None:
    base, shipped, out = (tmp_path / name for name in ("base", "shipped", "out"))
    for folder in (base, shipped, out):
        folder.mkdir()
    table_VD = np.arange(10, dtype=np.float32).reshape(5, 2)
    save_file({WORD: table_VD, "layer": np.zeros(2, np.float32)}, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    (base / "tokenizer.json").write_text("[]")
    trained = {"new_word_embeddings": np.full((2, 2), 9, np.float16), "layer": np.ones(2, np.float16)}
    save_file(trained, shipped / "encoder.safetensors")
    restore_encoder(shipped, base, out)
    restored = load_file(out / "model.safetensors")
    np.testing.assert_array_equal(restored[WORD], [*table_VD[:3], [9, 9], [9, 9]])
    np.testing.assert_array_equal(restored["layer"], [1, 1])
    assert restored[WORD].dtype == restored["layer"].dtype == np.float32
    assert (out / "tokenizer.json").read_text() == "[]"


def test_restoring_the_translator(tmp_path: Path) -> None:
    shipped = load_file(TRANSLATOR / "encoder.safetensors")
    new = len(shipped["new_word_embeddings"])
    layers = 1 + max(int(name.split(".")[2]) for name in shipped if name.startswith("encoder.layer."))
    width, inner = shipped["encoder.layer.0.output.dense.weight"].shape
    positions = len(shipped["embeddings.position_embeddings.weight"])
    bert_config = transformers.BertConfig(
        vocab_size=5 + new,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=inner,
        max_position_embeddings=positions,
    )
    base, out = tmp_path / "base", tmp_path / "out"
    save_encoder(base, "bert")  # for its tokenizer
    transformers.BertModel(bert_config, add_pooling_layer=False).save_pretrained(base)
    out.mkdir()
    restore_translator(TRANSLATOR, base, out)
    translator, config = load_translator(out)
    assert config.name == "reference-translator"
    assert config.sources
    state = translator.decoder.state_dict()
    for name, tensor in load_file(TRANSLATOR / "decoder.safetensors").items():
        np.testing.assert_array_equal(state[name].numpy(), tensor.astype(np.float32))
    tied = translator.decoder.get_output_embeddings().weight
    assert tied is translator.decoder.get_input_embeddings().weight
    pieces = Tokenizer.from_str(translator.target_tokenizer_json)
    assert pieces.get_vocab_size() == len(tied)
    assert pieces.decode(pieces.encode("A new law", add_special_tokens=False).ids) == "A new law"
