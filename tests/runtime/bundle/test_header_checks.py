"""Damaged model files are refused in Python, before a native parser reads them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtllm_edge import Bundle
from mtllm_edge.bundle.formats import ctranslate2 as ctranslate2_format
from mtllm_edge.bundle.formats import gguf as gguf_format
from mtllm_edge.bundle.formats import safetensors as safetensors_format
from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.errors import ModelError
from tests.fixtures import tiny_bundle


def relist(bundle: Path) -> None:
    """Update sizes and digests in the manifest, so that only the header checks can detect the damage."""
    path = bundle / "bundle.json"
    content = msgspec.json.decode(path.read_bytes())
    content["files"] = msgspec.to_builtins(list_files(bundle))
    path.write_bytes(msgspec.json.encode(content))


def refuses(bundle: Path, *fragments: str) -> None:
    relist(bundle)
    with pytest.raises(ModelError) as caught:
        Bundle.open(bundle)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in (str(bundle), *fragments):
        assert fragment in message


def test_gguf_headers_equal_those_of_gguf_py(tiny_bundle: Path) -> None:
    header = gguf_format.read_header(tiny_bundle / "llm.gguf")
    reader = gguf.GGUFReader(tiny_bundle / "llm.gguf")
    assert header.shapes == {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert header.types == {tensor.name: int(tensor.tensor_type) for tensor in reader.tensors}
    for key, value in header.fields.items():
        assert value == reader.fields[key].contents()


def test_gguf_arrays(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_array("words", ["a", "", "ccc"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_string("after", "end")
    writer.add_tensor("t", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = gguf_format.read_header(tmp_path / "x.gguf")
    assert (header.fields["words"], header.fields["numbers"], header.fields["after"]) == (None, None, "end")
    assert header.shapes == {"t": (32, 2)}


def test_gguf_booleans_in_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "gemma2")
    writer.add_sliding_window_pattern([True, False, True])
    writer.add_tensor("t", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_format.read_header(path).arrays == {"gemma2.attention.sliding_window_pattern": (gguf_format.BOOL, 3)}
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<IQ3B", 7, 3, 1, 0, 1), struct.pack("<IQ3B", 7, 3, 1, 2, 1)))
    with pytest.raises(DamagedFileError, match="a truth value of 2 before offset"):
        gguf_format.read_header(path)


def test_block_sizes_equal_those_of_gguf_py() -> None:
    for kind, (block, width) in gguf_format._TENSOR_TYPES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == (block, width)


def test_valid_files_are_accepted(tiny_variant: Callable[..., Path]) -> None:
    for quantization in ("f32", "q8_0", "q4_0"):
        Bundle.open(tiny_variant(quantization=quantization)).verify()
    Bundle.open(tiny_variant(encoder_quantization="int8")).verify()
    Bundle.open(tiny_variant(architecture="llama-embed", attention="bidirectional")).verify()


@pytest.mark.parametrize("name", ["llm.gguf", "encoder/model.bin", "bridge.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("share", [0.0, 0.00002, 0.001, 0.02, 0.3, 0.7, 0.99999])
def test_truncated_anywhere(fresh_bundle: Path, name: str, share: float) -> None:
    content = (fresh_bundle / name).read_bytes()
    (fresh_bundle / name).write_bytes(content[: int(len(content) * share)])
    refuses(fresh_bundle, f"{name}: ")


def test_every_truncation_of_the_gguf_header_is_detected(tiny_bundle: Path, tmp_path: Path) -> None:
    content = (tiny_bundle / "llm.gguf").read_bytes()
    for length in range(0, 2400, 7):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(DamagedFileError):
            gguf_format.read_header(tmp_path / "cut.gguf")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_header_readers_only_raise_their_own_error(tiny_bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    name, read = data.draw(
        st.sampled_from(
            [
                ("llm.gguf", gguf_format.read_header),
                ("encoder/model.bin", ctranslate2_format.read_shapes),
                ("bridge.safetensors", safetensors_format.read_shapes),
            ]
        )
    )
    content = bytearray((tiny_bundle / name).read_bytes())
    places = st.integers(0, min(2300, len(content) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        content[place] = value
    (tmp_path / "damaged").write_bytes(content)
    with contextlib.suppress(DamagedFileError):  # a changed name or value may be valid
        read(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("offset", "value", "fragment"),
    [
        (0, b"GGML", "no GGUF file: begins with b'GGML'"),
        (4, struct.pack("<I", 4), "GGUF version 4, expected 2 or 3"),
        (4, struct.pack(">I", 3), "GGUF version 50331648"),
        (8, struct.pack("<Q", 2**60), f"{2**60} tensors"),
        (16, struct.pack("<Q", 2**60), f"{2**60} fields"),
        (24, struct.pack("<Q", 2**63), f"{2**63} bytes"),
    ],
)
def test_wrong_numbers_in_a_gguf_header(fresh_bundle: Path, offset: int, value: bytes, fragment: str) -> None:
    content = bytearray((fresh_bundle / "llm.gguf").read_bytes())
    content[offset : offset + len(value)] = value
    (fresh_bundle / "llm.gguf").write_bytes(content)
    refuses(fresh_bundle, "llm.gguf: ", fragment)


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"N_EMBD": 64}, "llama.embedding_length is 64, expected 32"),
        ({"N_LAYER": 3}, "llama.block_count is 3, expected 2"),
        ({"N_HEAD": 0}, "llama.attention.head_count is 0, expected 1 to 1024"),
        ({"N_HEAD_KV": 3}, "4 heads and 3 key-value heads do not divide"),
        ({"N_HEAD": 5, "N_HEAD_KV": 5}, "5 heads and 5 key-value heads do not divide a width of 32"),
        ({"N_FF": 0}, "llama.feed_forward_length is 0, expected above 0"),
        ({"RMS_EPS": 0.0}, "layer_norm_rms_epsilon is 0.0, expected above 0"),
        ({"RMS_EPS": float("nan")}, "layer_norm_rms_epsilon is nan"),
    ],
)
def test_gguf_fields_against_the_manifest(
    fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, float], fragment: str
) -> None:
    weights = tiny_bundle.llm_weights(np.random.default_rng(tiny_bundle.SEED))
    for name, value in fields.items():
        monkeypatch.setattr(tiny_bundle, name, value)
    if fields.get("N_HEAD") == 0:  # the writer divides by it
        monkeypatch.setattr(gguf.GGUFWriter, "add_rope_dimension_count", lambda *_: None)
        monkeypatch.setattr(tiny_bundle, "N_EMBD", _Quotient(32))
    tiny_bundle.write_llm(fresh_bundle / "llm.gguf", weights)
    refuses(fresh_bundle, "llm.gguf: ", fragment)


class _Quotient(int):
    """An integer that can be divided by zero."""

    def __floordiv__(self, _: int) -> int:
        return 0


def test_gguf_of_another_architecture(fresh_bundle: Path) -> None:
    weights = tiny_bundle.llm_weights(np.random.default_rng(tiny_bundle.SEED))
    tiny_bundle.write_llm(fresh_bundle / "llm.gguf", weights, architecture="llama-embed")
    refuses(fresh_bundle, "llm.gguf: general.architecture is 'llama-embed', expected 'llama'")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (
            lambda weights: weights.update({"output.weight": np.zeros((32, 32), np.float32)}),
            "tensor 'output.weight', which",
        ),
        (
            lambda weights: weights.update({"blk.0.attn_k.weight": np.zeros((32, 32), np.float32)}),
            "has shape [32, 32], exp",
        ),
        (lambda weights: weights.update({"output_norm.weight": np.ones(32, np.float16)}), "has type 1, expected 0"),
    ],
)
def test_gguf_with_other_tensors(
    fresh_bundle: Path,
    change: Callable[[dict[str, np.ndarray]], object],
    fragment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tiny_bundle.llm_weights(np.random.default_rng(tiny_bundle.SEED))
    change(weights)
    add = gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(  # the tiny bundle has norms in float32 only
        gguf.GGUFWriter,
        "add_tensor",
        lambda writer, name, tensor, **options: add(
            writer, name, tensor.astype(weights.get(name, tensor).dtype), **options
        ),
    )
    tiny_bundle.write_llm(fresh_bundle / "llm.gguf", weights)
    refuses(fresh_bundle, "llm.gguf: ", fragment)


def test_gguf_tensors_must_be_contiguous(fresh_bundle: Path) -> None:
    path = fresh_bundle / "llm.gguf"
    content = bytearray(path.read_bytes())
    name = b"blk.0.attn_k.weight"
    place = content.index(name) + len(name) + 4 + 16 + 4  # dimensions, two lengths, type
    content[place : place + 8] = struct.pack("<Q", 0)
    path.write_bytes(content)
    refuses(fresh_bundle, "llm.gguf: tensor blk.0.attn_k.weight begins at 0 of the data, expected ")


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        (
            "config",
            '{"bos_token": "a", "eos_token": "b", "unk_token": "c", "quantization_type": 1}',
            "quantization_type",
        ),
        (
            "config",
            '{"bos_token": "a", "eos_token": "b", "unk_token": "c", "layer_norm_epsilon": -1}',
            "is -1.0, expected",
        ),
        ("config", "[" * 100_000, "no configuration of an encoder"),
        ("vocabulary", '["a", "b"]', "names 2 tokens, the encoder has "),
        ("vocabulary", "{}", "no vocabulary"),
    ],
)
def test_json_files_of_the_encoder(fresh_bundle: Path, name: str, text: str, fragment: str) -> None:
    (fresh_bundle / "encoder" / f"{name}.json").write_text(text, encoding="utf-8")
    refuses(fresh_bundle, "encoder/", fragment)


@pytest.mark.parametrize(
    ("setting", "value", "fragment"),
    [
        (b"num_heads", b"\0\0", "num_heads is 0.0, which is not possible"),
        (b"num_heads", b"\3\0", "num_heads is 3.0, which is not possible"),
        (b"activation", b"\7", "activation is 7.0, which is not possible"),
        (b"embeddings_merge", b"\0", "embeddings_merge is 0.0, which is not possible"),
    ],
)
def test_settings_of_the_encoder(fresh_bundle: Path, setting: bytes, value: bytes, fragment: str) -> None:
    path = fresh_bundle / "encoder" / "model.bin"
    content = bytearray(path.read_bytes())
    place = content.index(b"encoder/" + setting + b"\0") + len(setting) + 9 + 1 + 1 + 4
    content[place : place + len(value)] = value
    path.write_bytes(content)
    refuses(fresh_bundle, "encoder/model.bin: ", fragment)


def test_gguf_with_a_missing_tensor(fresh_bundle: Path) -> None:
    weights = tiny_bundle.llm_weights(np.random.default_rng(tiny_bundle.SEED))
    del weights["blk.1.ffn_gate.weight"]
    tiny_bundle.write_llm(fresh_bundle / "llm.gguf", weights)
    refuses(fresh_bundle, "llm.gguf: lacks the tensors blk.1.ffn_gate.weight")


def test_encoder_against_the_manifest(fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_bundle, "D_MODEL", 8)
    monkeypatch.setattr(tiny_bundle, "MAX_TOKENS", 63)
    vocabulary = msgspec.json.decode((fresh_bundle / "encoder" / "vocabulary.json").read_bytes())
    (fresh_bundle / "encoder").rename(fresh_bundle / "old")
    weights = tiny_bundle.encoder_weights(np.random.default_rng(tiny_bundle.SEED), len(vocabulary))
    tiny_bundle.write_encoder(fresh_bundle / "encoder", weights, vocabulary, "float32")
    refuses(
        fresh_bundle,
        f"encoder/model.bin: word embeddings have shape [{len(vocabulary)}, 8], expected [vocabulary, 16]",
        "63 positions, fewer than max_tokens 64",
    )


def test_encoder_of_another_binary_version(fresh_bundle: Path) -> None:
    path = fresh_bundle / "encoder" / "model.bin"
    path.write_bytes(struct.pack("<I", 5) + path.read_bytes()[4:])
    refuses(fresh_bundle, "encoder/model.bin: CTranslate2 binary version 5, expected 6")


@pytest.mark.parametrize(
    ("name", "arrays", "fragment"),
    [
        ("bridge", {"weight": (32, 15), "bias": (32,)}, "tensor weight has shape [32, 15], expected [32, 16]"),
        ("bridge", {"weight": (32, 16)}, "lacks the tensors bias"),
        ("tasks/topic/head", {"weight": (2, 32)}, "tensor weight has shape [2, 32], expected [3, 32]"),
        ("tasks/topic/head", {"weight": (3, 32), "bias": (2,)}, "tensor bias has shape [2], expected [3]"),
        ("tasks/topic/head", {"weight": (3, 32), "scale": (3,)}, "holds the tensor 'scale'"),
        ("tasks/topic/head", {}, "lacks the tensors weight"),
    ],
)
def test_arrays_of_another_shape(
    fresh_bundle: Path, name: str, arrays: dict[str, tuple[int, ...]], fragment: str
) -> None:
    path = fresh_bundle / f"{name}.safetensors"
    safetensors.numpy.save_file({key: np.zeros(shape, np.float32) for key, shape in arrays.items()}, path)
    refuses(fresh_bundle, f"{name}.safetensors: ", fragment)


def test_arrays_of_another_type(fresh_bundle: Path) -> None:
    arrays = {"weight": np.zeros((3, 32), np.float16)}
    safetensors.numpy.save_file(arrays, fresh_bundle / "tasks/topic/head.safetensors")
    refuses(fresh_bundle, "head.safetensors: tensor weight has type F16, expected F32")


def test_a_tokenizer_file_with_other_json(fresh_bundle: Path) -> None:
    (fresh_bundle / "tokenizer.json").write_text('{"words": []}', encoding="utf-8")
    refuses(fresh_bundle, "tokenizer.json: no tokenizer")
