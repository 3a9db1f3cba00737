"""The encoder in CTranslate2 against the same encoder in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
import transformers

from mtllm_edge.errors import ModelError
from mtllm_edge_export.encoders.ctranslate2 import write_encoder
from mtllm_edge_export.encoders.spec import EncoderQuantization
from mtllm_edge_train.models.encoder import LoadedEncoder, load_encoder
from tests.fixtures.tiny_bundle import INT8_COSINE
from tests.fixtures.tiny_checkpoint import Family, save_encoder

TEXTS = ("Good morning.", "おはようございます", "காலை வணக்கம்", "x")


def lowest_cosine(encoder: LoadedEncoder, folder: Path, quantization: str) -> float:
    """Over every token of `TEXTS`, run as one padded batch."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(encoder.tokenizer_json)
    batch = [tokenizer.encode(text).ids for text in TEXTS]
    engine = ctranslate2.Encoder(str(folder), compute_type=quantization)
    states_NLD = np.array(engine.forward_batch(batch).last_hidden_state)
    cosines = []
    for row, ids in enumerate(batch):
        with torch.inference_mode():
            expected_LD = encoder.module(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        found_LD = states_NLD[row, : len(ids)]
        lengths = np.linalg.norm(expected_LD, axis=1) * np.linalg.norm(found_LD, axis=1)
        cosines.append(((expected_LD * found_LD).sum(1) / lengths).min())
    return float(min(cosines))


@pytest.mark.parametrize("family", ["bert", "m2m_100"])
@pytest.mark.parametrize(("quantization", "cosine"), [("float32", 0.9999), ("int8", INT8_COSINE)])
def test_states_are_those_of_transformers(
    family: Family, quantization: EncoderQuantization, cosine: float, tmp_path: Path
) -> None:
    save_encoder(tmp_path / "source", family)
    encoder = load_encoder(str(tmp_path / "source"))
    write_encoder(encoder, tmp_path / "encoder", quantization)
    assert lowest_cosine(encoder, tmp_path / "encoder", quantization) >= cosine


def test_the_model_given_is_left_unchanged(tmp_path: Path) -> None:
    save_encoder(tmp_path / "source", "m2m_100")
    encoder = load_encoder(str(tmp_path / "source"))
    before = encoder.full_model.config.to_dict()
    write_encoder(encoder, tmp_path / "encoder", "float32")
    assert encoder.full_model.config.to_dict() == before


@pytest.mark.parametrize(
    ("family", "unknown", "first", "last"),
    [("bert", "[UNK]", "[CLS]", "[SEP]"), ("m2m_100", "<unk>", "<s>", "</s>")],
)
def test_special_tokens_are_the_tokenizers(family: Family, unknown: str, first: str, last: str, tmp_path: Path) -> None:
    save_encoder(tmp_path / "source", family)
    write_encoder(load_encoder(str(tmp_path / "source")), tmp_path / "encoder", "float32")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert (config["unk_token"], config["bos_token"], config["eos_token"]) == (unknown, first, last)


def test_a_family_without_a_loader_is_refused(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(
        vocab_size=20, embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.ElectraModel(config)
    encoder = LoadedEncoder(
        family="electra",
        module=model,
        full_model=model,
        d_model=8,
        max_positions=16,
        tokenizer_json="{}",
        prefix_tokens=(),
        suffix_tokens=(),
        languages=(),
    )
    with pytest.raises(ModelError, match=r"cannot convert ElectraConfig .*train the stack on"):
        write_encoder(encoder, tmp_path / "encoder", "float32")
    assert not (tmp_path / "encoder").exists()
