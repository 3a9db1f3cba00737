from __future__ import annotations

import base64
import json
from pathlib import Path

import pyarrow
import pytest
import tokenizers

from mtllm_edge.bundle.formats import tokenizer_json
from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.errors import DataError, ModelError, UsageError
from mtllm_edge.tokenization.tokenizer import Tokenizer
from tests.fixtures import tiny_bundle


@pytest.fixture(scope="module")
def file(tiny_bundle: Path) -> Path:
    return tiny_bundle / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer(file, prefix_tokens=["<s>"], suffix_tokens=["</s>"], max_tokens=10)


@pytest.fixture(scope="module")
def language_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer with two language tokens, like NLLB."""
    path = tmp_path_factory.mktemp("languages") / "tokenizer.json"
    tiny_bundle.write_tokenizer(path)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["deu_Latn", "swh_Latn"])
    tokenizer.save(str(path))
    return path


def test_special_tokens_and_text(file: Path, tokenizer: Tokenizer) -> None:
    raw = tokenizers.Tokenizer.from_file(str(file))
    (encoded,) = tokenizer.encode(["the team"])
    assert encoded.ids[0] == raw.token_to_id("<s>")
    assert encoded.ids[-1] == raw.token_to_id("</s>")
    assert encoded.ids[1:-1] == raw.encode("the team", add_special_tokens=False).ids
    assert not encoded.truncated


def test_truncation_keeps_the_special_tokens_and_is_reported(tokenizer: Tokenizer) -> None:
    fits, cut = tokenizer.encode(["b" * 7, "b" * 8])  # plus one token for the beginning of the word
    assert (len(fits.ids), fits.truncated) == (10, False)
    assert (len(cut.ids), cut.truncated) == (10, True)
    assert cut.ids == fits.ids


def test_hundred_thousand_characters(tokenizer: Tokenizer) -> None:
    (encoded,) = tokenizer.encode(["Ж привет " * 12_000])
    assert (len(encoded.ids), encoded.truncated) == (10, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text 1 is empty"),
        (" \t\u3000\n", "text 1 is empty"),
        ("ab\ud800", "text 1 holds half of a surrogate pair at character 2"),
        (None, "text 1 has the type NoneType, expected str"),
    ],
)
def test_invalid_texts(tokenizer: Tokenizer, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tokenizer.encode(["good", text])


def test_text_of_dropped_characters(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tiny_bundle.write_tokenizer(path)
    raw = tokenizers.Tokenizer.from_file(str(path))
    raw.normalizer = tokenizers.normalizers.Replace("x", "")
    raw.save(str(path))
    bare = Tokenizer(path, prefix_tokens=[], suffix_tokens=[], max_tokens=10)
    with pytest.raises(DataError, match="text 0 has no tokens"):
        bare.encode(["xxx"])


def test_one_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="put it into a list"):
        tokenizer.encode("the team")


def test_a_table_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="came as a dict; give the column"):
        tokenizer.encode({"text": ["the team"]})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="came as a Table; give the column"):
        tokenizer.encode(pyarrow.table({"text": ["the team"]}))


def test_no_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([]) == []


def test_language_tokens(language_file: Path) -> None:
    tokenizer = Tokenizer(
        language_file,
        prefix_tokens=["{language}"],
        suffix_tokens=["</s>"],
        max_tokens=10,
        languages=["deu_Latn", "swh_Latn"],
    )
    raw = tokenizers.Tokenizer.from_file(str(language_file))
    (encoded,) = tokenizer.encode(["timu"], language="swh_Latn")
    assert encoded.ids[0] == raw.token_to_id("swh_Latn")
    with pytest.raises(UsageError, match="requires the language of the texts; pass one of deu_Latn, swh_Latn"):
        tokenizer.encode(["timu"])
    with pytest.raises(UsageError, match="unknown language 'swahilly'; did you mean Swahili"):
        tokenizer.encode(["timu"], language="swahilly")


def test_a_language_for_each_text(language_file: Path) -> None:
    tokenizer = Tokenizer(
        language_file,
        prefix_tokens=["<s>"],
        suffix_tokens=["</s>", "{language}"],
        max_tokens=10,
        languages=["deu_Latn", "swh_Latn"],
    )
    texts = ["timu", "gut", "timu"]
    mixed_codes = ["swh_Latn", "deu_Latn", "swh_Latn"]
    mixed = tokenizer.encode(texts, language=["sw", "German", "swh_Latn"])
    assert [text.language for text in mixed] == mixed_codes
    single_encodings = [
        tokenizer.encode([text], language=code)[0] for text, code in zip(texts, mixed_codes, strict=True)
    ]
    assert mixed == single_encodings
    assert mixed[0].ids[-1] != mixed[1].ids[-1]


def test_language_of_an_encoder_without_language_tokens(tokenizer: Tokenizer) -> None:
    """It is part of the result and changes nothing else."""
    (untagged,), (tagged,) = tokenizer.encode(["timu"]), tokenizer.encode(["timu"], language="sw")
    assert (untagged.language, tagged.language) == (None, "swh_Latn")
    assert untagged.ids == tagged.ids
    with pytest.raises(UsageError, match="unknown language 'swahilly'"):
        tokenizer.encode(["timu"], language="swahilly")


def test_tokenizer_of_another_model(file: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json lacks the tokens \['\[CLS\]'\]"):
        Tokenizer(file, prefix_tokens=["[CLS]"], suffix_tokens=["</s>"], max_tokens=10)
    with pytest.raises(ModelError, match="max_tokens is 2, too few for text besides"):
        Tokenizer(file, prefix_tokens=["<s>"], suffix_tokens=["</s>"], max_tokens=2)
    with pytest.raises(ModelError, match="not a readable tokenizer"):
        Tokenizer(file.parent / "bridge.safetensors", prefix_tokens=[], suffix_tokens=[], max_tokens=10)


_FIRST, _SECOND = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


@pytest.mark.parametrize(
    "change",
    [
        {"post_processor": {"type": "TemplateProcessing", "single": [_SECOND], "pair": [_FIRST], "special_tokens": {}}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {
            "model": {
                "type": "BPE",
                "vocab": {"a": 0, "b": 1, "ab": 2},
                "merges": ["a b"],
                "continuing_subword_prefix": "ééé",
            }
        },
    ],
)
def test_a_panic_in_rust_is_one_line(file: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """A panic of the Rust library is not a subclass of `Exception`."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(file.read_bytes()) | change), encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a readable tokenizer") as caught:
        Tokenizer(path, prefix_tokens=[], suffix_tokens=[], max_tokens=10).encode(["a b"])
    assert "\n" not in str(caught.value)


_GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [_GROWING] * 4}}, "makes a text up to 256 times longer"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, "searches for nothing"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 64}}, "has 65 steps"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 2000}}, "prepends more than"),
        ({"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9}}, "reads words of 1000000000 letters"),
        ({"model": {"type": "Neural"}}, "has a model of type 'Neural'"),
        ({"added_tokens": [{"content": ""}]}, "adds a token without letters"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}}, "is no base64"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}},
            "has a trie of 4294967295 bytes",
        ),
        (
            {
                "normalizer": {
                    "type": "Precompiled",
                    "precompiled_charsmap": base64.b64encode(bytes(4) + b"x" * 300).decode(),
                }
            },
            "makes more than 256 bytes of one letter",
        ),
    ],
)
def test_steps_that_exhaust_memory_or_time(file: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        tokenizer_json.validate_tokenizer(json.dumps(json.loads(file.read_bytes()) | change).encode())


def test_steps_of_published_files_are_accepted(file: Path) -> None:
    replaced = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    steps = [{"type": "NFKC"}, replaced, {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}]
    change = {"normalizer": {"type": "Sequence", "normalizers": steps}}
    tokenizer_json.validate_tokenizer(json.dumps(json.loads(file.read_bytes()) | change).encode())
