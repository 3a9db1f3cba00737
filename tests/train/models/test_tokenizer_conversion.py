"""Converted tokenizers of M2M100 and Marian, compared with those of transformers on small SentencePiece models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import sentencepiece
import transformers

from mtllm_edge_train.models.encoder import load_encoder
from mtllm_edge_train.models.tokenizer_conversion import is_sentencepiece, tokenizer_json

TEXTS = [
    "The train leaves in the morning.",
    "  Two  spaces, and ½ of ａ full width letter ",
    "Der Zug fährt am Morgen ab, nicht am Abend.",
    "unseen: Ж ж 犬",
    "the the the trains train leaving",
]
_CORPUS = [
    "the train leaves in the morning and the other train leaves in the evening",
    "der Zug fährt am Morgen ab und der andere Zug fährt am Abend ab",
    "two letters, three letters: a full line. of words, and some more words!",
] * 20


def save_pieces(folder: Path, kind: Literal["unigram", "bpe"], specials: list[str], last: list[str]) -> None:
    """Train a SentencePiece model; write it under the names of both families, with a reordered `vocab.json`."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS),
        model_prefix=str(folder / "pieces"),
        vocab_size=90,
        model_type=kind,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    content = (folder / "pieces.model").read_bytes()
    for name in ("source.spm", "target.spm", "sentencepiece.bpe.model"):
        (folder / name).write_bytes(content)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    own = [*specials, *sorted(piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")), *last]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(own)}))
    for name in ("pieces.model", "pieces.vocab"):
        (folder / name).unlink()


@pytest.fixture(params=["m2m_100", "marian"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "m2m_100":
        save_pieces(tmp_path, "bpe", ["<s>", "<pad>", "</s>", "<unk>"], [])
        return transformers.M2M100Tokenizer.from_pretrained(tmp_path)
    save_pieces(tmp_path, "unigram", ["</s>", "<unk>"], ["ж", "<pad>"])
    return transformers.MarianTokenizer.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_ids_equal_those_of_transformers(tokenizer: Any) -> None:
    import tokenizers

    assert is_sentencepiece(tokenizer)
    converted = tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer))
    for text in TEXTS:
        assert converted.encode(text).ids == tokenizer(text)["input_ids"], text
    assert converted.encode(TEXTS[0], TEXTS[2]).ids == tokenizer(TEXTS[0], TEXTS[2])["input_ids"]


def test_loading_an_encoder_with_a_converted_tokenizer(tmp_path: Path) -> None:
    save_pieces(tmp_path, "bpe", ["<s>", "<pad>", "</s>", "<unk>"], [])
    own = transformers.M2M100Tokenizer.from_pretrained(tmp_path)
    size = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.M2M100Config(vocab_size=len(own.encoder) + 108, d_model=8, **size, **heads)
    transformers.M2M100ForConditionalGeneration(config).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert (encoder.prefix_tokens, encoder.suffix_tokens) == (("__{language}__",), ("</s>",))
    assert len(encoder.languages) == 100
    assert {"de", "en", "ceb"} <= set(encoder.languages)
