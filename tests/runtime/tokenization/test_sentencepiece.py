from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from mtllm_edge.errors import ModelError
from mtllm_edge.tokenization.sentencepiece import SentencePieces
from mtllm_edge.tokenization.tokenizer import Tokenizer

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "reference/parts/tokenizer.json"
TEXTS = ["The rocket", " a  rocket\tand\nrockets ", "Ｒｏｃｋｅｔ ①", "\u2581rock", "zq", "</s> rock"]


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """A tokenizer file with a few pieces, and XLM-R's template and normalizer."""
    file: dict[str, Any] = json.loads(REFERENCE.read_bytes())
    special = [(token["content"], 0.0) for token in file["added_tokens"][:4]]
    pieces = ["▁", "▁a", "▁rock", "et", "s", "▁the", *"abcdefghijklmnoprtTRE1"]
    file["model"]["vocab"] = [*special, *((piece, -float(rank)) for rank, piece in enumerate(pieces, 2))]
    file["added_tokens"] = file["added_tokens"][:4]
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    file["post_processor"] |= {"single": texts[:1], "pair": [texts[0], end, end, texts[1]]}
    assert [token["id"] for token in file["added_tokens"]] == [0, 1, 2, 3]
    return file


def save(file: dict[str, Any], folder: Path) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(file))
    return path


def test_ids_equal_those_of_tokenizers_in_48_languages() -> None:
    with (ROOT / "benchmarks/demo_topics.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    pieces = SentencePieces.open(REFERENCE)
    assert pieces is not None
    raw = tokenizers.Tokenizer.from_file(str(REFERENCE))
    assert pieces.size == raw.get_vocab_size()
    assert pieces.encode(texts) == [encoded.ids for encoded in raw.encode_batch(texts, add_special_tokens=False)]
    end = raw.token_to_id("</s>")
    assert pieces.separator == [end, end]
    assert (pieces.id("</s>"), pieces.id("no such token")) == (end, None)


@pytest.mark.parametrize("text", TEXTS[:5])
def test_ids_of_a_small_tokenizer(small: dict[str, Any], tmp_path: Path, text: str) -> None:
    path = save(small, tmp_path)
    pieces = SentencePieces.open(path)
    assert pieces is not None
    raw = tokenizers.Tokenizer.from_file(str(path)).encode(text.strip(), add_special_tokens=False)
    assert pieces.encode([text]) == [raw.ids]


def test_names_of_special_tokens_in_a_text_are_text(small: dict[str, Any], tmp_path: Path) -> None:
    pieces = SentencePieces.open(save(small, tmp_path))
    assert pieces is not None
    (ids,) = pieces.encode(["</s> rock"])
    assert pieces.id("</s>") not in ids


def _bytes(file: dict[str, Any]) -> None:
    file["model"]["byte_fallback"] = True


def _other_model(file: dict[str, Any]) -> None:
    file["model"]["type"] = "BPE"


def _no_normalizer(file: dict[str, Any]) -> None:
    file["normalizer"] = None


def _other_characters(file: dict[str, Any]) -> None:
    normalizer = file["normalizer"]
    first = normalizer["normalizers"][0] if normalizer["type"] == "Sequence" else normalizer
    first["precompiled_charsmap"] = "AAAA" + first["precompiled_charsmap"][4:]


def _lower_case(file: dict[str, Any]) -> None:
    file["normalizer"] = {"type": "Sequence", "normalizers": [file["normalizer"], {"type": "Lowercase"}]}


def _other_words(file: dict[str, Any]) -> None:
    file["pre_tokenizer"] = {"type": "Whitespace"}


def _repeated_piece(file: dict[str, Any]) -> None:
    file["model"]["vocab"].append(file["model"]["vocab"][-1])


def _unlikely(file: dict[str, Any]) -> None:
    file["model"]["vocab"][-1] = ("E", -1e39)


def _no_unknown(file: dict[str, Any]) -> None:
    file["model"]["unk_id"] = len(file["model"]["vocab"])


def _added_word(file: dict[str, Any]) -> None:
    file["added_tokens"].append(dict(file["added_tokens"][0], id=5, content="▁a", special=False))


def _added_beyond(file: dict[str, Any]) -> None:
    file["added_tokens"].append(dict(file["added_tokens"][0], id=len(file["model"]["vocab"]), content="<new>"))


def _other_template(file: dict[str, Any]) -> None:
    file["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def _no_template(file: dict[str, Any]) -> None:
    file["post_processor"] = {"type": "TemplateProcessing", "pair": [{"Sequence": "A"}, 3]}


def _special_alone(file: dict[str, Any]) -> None:
    for index, (piece, _) in enumerate(file["model"]["vocab"]):
        file["added_tokens"].append(dict(file["added_tokens"][0], id=index, content=piece))


@pytest.mark.parametrize(
    "change",
    [
        *(_no_template, _special_alone),
        *(_bytes, _other_model, _no_normalizer, _other_characters, _lower_case, _other_words),
        *(_repeated_piece, _unlikely, _no_unknown, _added_word, _added_beyond, _other_template),
    ],
)
def test_unsupported_tokenizers_are_left_to_the_other_library(
    small: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    file = json.loads(json.dumps(small))
    assert SentencePieces.open(save(file, tmp_path)) is not None
    change(file)
    assert SentencePieces.open(save(file, tmp_path)) is None


def test_unsupported_tokenizers_are_read_by_the_other_library(small: dict[str, Any], tmp_path: Path) -> None:
    file = json.loads(json.dumps(small))
    file["pre_tokenizer"] = {"type": "Whitespace"}
    path = save(file, tmp_path)
    with_sentencepiece, without_sentencepiece = (
        Tokenizer(
            path, prefix_tokens=["<s>"], suffix_tokens=["</s>"], max_tokens=10, use_sentencepiece=with_sentencepiece
        )
        for with_sentencepiece in (True, False)
    )
    assert with_sentencepiece.encode(["the rockets"]) == without_sentencepiece.encode(["the rockets"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": {"type": "Unigram", "vocab": 3}}', b"\xff\xfe"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    assert SentencePieces.open(path) is None
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer(path, prefix_tokens=[], suffix_tokens=[], max_tokens=10, use_sentencepiece=True)


def test_templates_and_pairs_with_both_libraries(small: dict[str, Any], tmp_path: Path) -> None:
    path = save(small, tmp_path)
    with_sentencepiece, without_sentencepiece = (
        Tokenizer(
            path, prefix_tokens=["<s>"], suffix_tokens=["</s>"], max_tokens=20, use_sentencepiece=with_sentencepiece
        )
        for with_sentencepiece in (True, False)
    )
    inputs = ["the rock", ("a rocket", "rockets"), ("rock", ["et", "s", "the"])]
    assert with_sentencepiece.encode(inputs) == without_sentencepiece.encode(inputs)
    assert with_sentencepiece.vocabulary_size == without_sentencepiece.vocabulary_size
