"""Training of a translation model: sampling, initialization, trained rows, resuming."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

from mtllm_edge.errors import DataError, ModelError, UsageError
from mtllm_edge_train.models.encoder import load_encoder
from mtllm_edge_train.multilingual.pairs import PairSampler, PairTokenizer, SentencePair, TokenPair
from mtllm_edge_train.multilingual.train_translator import TranslatorTraining
from mtllm_edge_train.multilingual.translator import Translator, load_bert, load_translator, new_decoder
from mtllm_edge_train.multilingual.vocabulary import add_pieces, trim_unigram
from mtllm_edge_train.recipes.reference.corpus import translation_pairs
from mtllm_edge_train.recipes.reference.e5 import round_word_embeddings
from mtllm_edge_train.training import settings
from mtllm_edge_train.training.loop import run_stage
from tests.fixtures.tiny_checkpoint import save_encoder
from tests.fixtures.tolerances import TRAINING, assert_vectors_close
from tests.train.interruption import killed_after_save

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = [*SPECIAL, "▁", *(f"▁{letter}" for letter in "abcdefgh"), *"abcdefgh"]
NOUNS = {"ab": "cd", "ba": "dc", "abb": "ccd", "bab": "dcd"}
PAIRS = [
    SentencePair(language, f"{left} {right}", f"{NOUNS[left]} {NOUNS[right]}", weight)
    for language, weight in (("one", 1.0), ("two", 3.0))
    for left in NOUNS
    for right in NOUNS
]
SETTINGS = settings.LoopSettings(batch_size=4, learning_rate=1e-2, save_every=3, log_every=1, dtype="float32")
NEW = 3


def tokenizer_json() -> str:
    scores = [(piece, 0.0 if piece in SPECIAL else -float(len(PIECES) - i)) for i, piece in enumerate(PIECES)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return str(tokenizer.to_str())


def tiny_bert(folder: Path) -> Path:
    """A BERT with random weights and the tokenizer above, written to `folder`."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(PIECES),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=300,
        pad_token_id=1,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


def tokenize(pairs: Sequence[SentencePair]) -> list[TokenPair]:
    return PairTokenizer(tokenizer_json(), tokenizer_json())(pairs)


def sampler(
    pairs: Sequence[SentencePair] = PAIRS, *, seed: int = 0, max_tokens: int = 64, batch_size: int = 8
) -> PairSampler[TokenPair]:
    return PairSampler(pairs, tokenize, max_tokens=max_tokens, batch_size=batch_size, seed=seed)


def test_batches_depend_on_seed_and_step_only() -> None:
    forwards, backwards = sampler(), sampler()
    first = [forwards[step] for step in range(70)]
    assert [backwards[step] for step in reversed(range(70))] == first[::-1]
    assert sampler(seed=1)[0] != first[0]


def test_pairs_are_sampled_by_weight() -> None:
    pairs = [SentencePair("one", "a", "c", 1.0), SentencePair("two", "b", "d", 3.0)]
    order = sampler(pairs, max_tokens=9, batch_size=16)
    counts = Counter(tuple(pair.source) for step in range(64) for pair in order[step])
    assert counts[tuple(tokenize(pairs)[1].source)] / counts.total() == pytest.approx(0.75, abs=0.04)


def test_tokenized_pairs_have_the_special_tokens_of_encoder_and_decoder() -> None:
    (pair,) = tokenize(PAIRS[:1])
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json())
    assert pair.source == tokenizer.encode("ab ab").ids
    assert pair.english == tokenizer.encode("cd cd").ids
    assert pair.target == [*pair.english[1:-1], SPECIAL.index("</s>")]


def test_too_long_pairs_are_skipped() -> None:
    assert all(max(map(len, pair)) <= 7 for step in range(32) for pair in sampler(max_tokens=7)[step])
    with pytest.raises(DataError, match="almost no sentence pair has at most 3 tokens"):
        sampler(max_tokens=3)[0]


def test_decoder_is_initialized_from_the_encoder(encoder: Path) -> None:
    bert = load_bert(str(encoder))
    target_json, rows = trim_unigram(tokenizer_json(), np.arange(len(PIECES)), 12)
    target = tokenizers.Tokenizer.from_str(target_json)
    model = new_decoder(bert, target, [int(row) for row in rows], layers=2)
    decoder, module = model.model.decoder, bert.module
    table_VD = module.embeddings.word_embeddings.weight
    assert all(
        (decoder.embed_tokens.weight[target.token_to_id(piece)] == table_VD[PIECES.index(piece)]).all()
        for piece in target.get_vocab()
    )
    assert model.lm_head.weight is decoder.embed_tokens.weight
    last, end = decoder.layers[-1], module.encoder.layer[-1]
    assert (last.self_attn.q_proj.weight == end.attention.self.query.weight).all()
    assert (last.encoder_attn.v_proj.weight == end.attention.self.value.weight).all()
    assert (last.fc2.bias == end.output.dense.bias).all()
    assert (decoder.embed_positions.weight[2:] == module.embeddings.position_embeddings.weight[:256]).all()


def test_encoder_in_a_translator_is_unchanged_and_trains_its_last_rows_only(encoder: Path, tmp_path: Path) -> None:
    ids_NL = torch.tensor([[0, 5, 6, len(PIECES) - 1, 2]])
    before = load_bert(str(encoder)).module(input_ids=ids_NL).last_hidden_state
    bert = load_bert(str(encoder))
    target_json, rows = trim_unigram(tokenizer_json(), np.arange(len(PIECES)), len(PIECES))
    decoder = new_decoder(bert, tokenizers.Tokenizer.from_str(target_json), [int(row) for row in rows], layers=1)
    model = Translator(bert, decoder, target_tokenizer_json=target_json, new_pieces=NEW)
    states_NLD = model.encode(ids_NL, torch.ones_like(ids_NL))
    torch.testing.assert_close(states_NLD, before)
    states_NLD.square().sum().backward()  # type: ignore[no-untyped-call]
    table = model.encoder.embeddings.word_embeddings
    assert table.trained.grad.abs().sum(1).nonzero().flatten().tolist() == [NEW - 1]
    assert not any(parameter.shape[0] == len(PIECES) for parameter in model.encoder.parameters())


def run(
    out: Path, encoder: Path, *, steps: int = 6, settings: settings.LoopSettings = SETTINGS, **options: Any
) -> None:
    arguments: dict[str, Any] = {
        "pairs": PAIRS,
        "name": "test",
        "encoder": str(encoder),
        "new_pieces": NEW,
        "target_pieces": 20,
        "decoder_layers": 1,
        "max_tokens": 32,
        "alignment": 1.0,
        "encoder_learning_rate": 1e-3,
    }
    run_stage(TranslatorTraining(steps=steps, settings=settings, **{**arguments, **options}), out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = load_translator(folder)
    table: Any = model.encoder.embeddings.word_embeddings
    return {"words": table.table(), **model.state_dict()}


def test_training_lowers_both_losses_and_keeps_frozen_rows(encoder: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", encoder, steps=40, settings=replace(SETTINGS, batch_size=16))
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("translation", "alignment"):
        assert np.mean([e[name] for e in entries[-5:]]) < 0.9 * np.mean([e[name] for e in entries[:5]])
    before = load_bert(str(encoder)).module.embeddings.word_embeddings.weight
    after = load_encoder(str(tmp_path / "run" / "encoder")).module.embeddings.word_embeddings.weight
    assert (after[:-NEW] == before[:-NEW]).all()


def test_resumed_run_gives_the_same_result(encoder: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", encoder)
    with killed_after_save():
        run(tmp_path / "cut", encoder)
    run(tmp_path / "cut", encoder)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert expected.keys() == found.keys()
    for name in expected:
        assert_vectors_close(found[name].ravel(), expected[name].ravel(), TRAINING)


def test_invalid_options(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="257, the decoder has 256 positions"):
        run(tmp_path / "run", encoder, max_tokens=257)
    with pytest.raises(UsageError, match="needs sentence pairs"):
        run(tmp_path / "run", encoder, pairs=[])
    save_encoder(tmp_path / "m2m", "m2m_100")
    with pytest.raises(ModelError, match="starts from a BERT encoder"):
        run(tmp_path / "run", tmp_path / "m2m")
    with pytest.raises(ModelError, match=r"translation.json is missing; name the folder of a trained translator"):
        load_translator(tmp_path)
    assert not (tmp_path / "run").exists()


def test_pieces_are_added_for_unknown_scripts_only() -> None:
    texts = ["ab ᱥᱟᱱ", "ᱥᱟᱱᱛᱟᱞ ᱥᱟᱱ", "ab cd"] * 20
    grown, added = add_pieces(tokenizer_json(), texts, 40)
    before, after = tokenizers.Tokenizer.from_str(tokenizer_json()), tokenizers.Tokenizer.from_str(grown)
    assert after.get_vocab_size() == before.get_vocab_size() + added
    assert SPECIAL.index("<unk>") in before.encode("ᱥᱟᱱ").ids
    assert SPECIAL.index("<unk>") not in after.encode("ᱥᱟᱱᱛᱟᱞ").ids
    assert after.encode("ab cd").ids == before.encode("ab cd").ids
    assert add_pieces(tokenizer_json(), ["ab"], 40) == (tokenizer_json(), 0)


def test_pairs_are_weighted_by_temperature_and_known_languages(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [("aaa_Latn", 8, "MIT"), ("bbb_Latn", 1, "MIT"), ("ccc_Latn", 8, "CC-BY-NC-4.0"), ("ddd_Latn", 1, "MIT")]
    table = [
        (code, f"text {i}", "one two three four five six seven eight", rights)
        for code, n, rights in rows
        for i in range(n)
    ]
    columns = dict(zip(("lang", "text", "english", "license"), map(list, zip(*table, strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "prose.parquet")
    pairs = translation_pairs(tmp_path, {"aaa_Latn", "bbb_Latn", "ccc_Latn"}, known={"aaa_Latn"})
    totals: Counter[str] = Counter()
    for pair in pairs:
        totals[pair.language] += pair.weight  # type: ignore[assignment]
    assert totals.keys() == {"aaa_Latn", "bbb_Latn", "eng_Latn"}
    assert totals["aaa_Latn"] == pytest.approx(8 ** (1 / 3))
    assert totals["bbb_Latn"] == pytest.approx(3)
    assert totals["eng_Latn"] == pytest.approx(sum(totals.values()) / 20)
    assert next(pair for pair in pairs if pair.language == "eng_Latn").text == pairs[-1].english


def test_rounding_word_embeddings_is_idempotent(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    table_VD = np.random.default_rng(0).standard_normal((7, 64), dtype=np.float32)
    word = "embeddings.word_embeddings.weight"
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    save_file({word: table_VD, "other": table_VD}, tmp_path / "source" / "model.safetensors")
    for source, target in (("source", "once"), ("once", "twice")):
        (tmp_path / target).mkdir()
        round_word_embeddings(tmp_path / source, tmp_path / target)
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert (once[word] == twice[word]).all()
    assert 0 < np.abs(once[word] - table_VD).max() < 0.25
    assert (once["other"] == table_VD).all()
    assert (tmp_path / "twice" / "config.json").read_text() == "{}"
