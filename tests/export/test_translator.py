"""A translator in torch and in CTranslate2: the same states, the same translations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from click.testing import CliRunner

from mtllm_edge.errors import DataError, MtllmError, UsageError
from mtllm_edge.translator import Translator
from mtllm_edge_export.cli import export_translator as command
from mtllm_edge_export.translator import bart_encoder
from mtllm_edge_train.multilingual.translator import load_bert, load_translator
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close
from tests.train.multilingual.test_train_translator import PAIRS, SETTINGS, run, tiny_bert


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translator")
    tiny_bert(folder / "bert")
    settings = replace(SETTINGS, batch_size=16, learning_rate=5e-3, save_every=1000)
    run(folder / "trained", folder / "bert", steps=400, settings=settings, alignment=0.0)
    return folder / "trained"


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    out = trained.parent / "exported"
    result = CliRunner().invoke(command, [str(trained), "--out", str(out), "--quantization", "float32"])
    assert result.exit_code == 0, result.output
    return out


def greedy(folder: Path, text: str) -> str:
    """What torch translates a text to."""
    model, _ = load_translator(folder)
    model.eval()
    source = tokenizers.Tokenizer.from_str(model.loaded.tokenizer_json).encode(text).ids
    target = tokenizers.Tokenizer.from_str(model.target_tokenizer_json)
    with torch.inference_mode():
        ids_NL = torch.tensor([source])
        states_NLD = model.encode(ids_NL, torch.ones_like(ids_NL))
        written: list[int] = []
        for _ in range(255):
            before_NT = torch.tensor([[model.start, *written]])
            decoded: Any = model.decoder(input_ids=before_NT, encoder_hidden_states=states_NLD, use_cache=False)
            written.append(int(decoded.logits[0, -1].argmax()))
            if written[-1] == model.start:
                break
    return str(target.decode([index for index in written if index != model.start]))


def test_a_bert_is_a_bart_encoder(tmp_path: Path) -> None:
    bert = load_bert(str(tiny_bert(tmp_path / "bert")))
    encoder = bart_encoder(bert.module, torch.from_numpy(bert.word_embeddings))
    ids_NL = torch.tensor([[0, 5, 6, 7, 2], [0, 9, 2, 1, 1]])
    mask_NL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.inference_mode():
        expected, found = (
            module(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state[mask_NL.bool()]
            for module in (bert.module, encoder)
        )
    assert_vectors_close(found, expected, FLOAT32)


def test_ctranslate2_writes_what_torch_writes(trained: Path, exported: Path) -> None:
    texts = list(dict.fromkeys(pair.text for pair in PAIRS))
    expected = [greedy(trained, text) for text in texts]
    assert len(set(expected)) > 1  # the translations depend on the texts
    translator = Translator.load(exported, threads=1)
    assert translator.translate(texts) == expected
    assert [translator.translate([text])[0] for text in texts] == expected
    assert len(translator.translate(texts, beam_size=4)) == len(texts)


def test_what_a_translator_refuses(exported: Path, tmp_path: Path) -> None:
    translator = Translator.load(exported, threads=1)
    assert translator.translate([]) == []
    with pytest.raises(DataError, match="text 1 is empty"):
        translator.translate(["ab", " "])
    with pytest.raises(UsageError, match="beam_size is 0"):
        translator.translate(["ab"], beam_size=0)
    with pytest.raises(MtllmError, match=r"has no translator.json; give a folder made by export-translator"):
        Translator.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["translator.json", "model.bin", "source_vocabulary.json", "tokenizer.json", "target_tokenizer.json"]
)
@pytest.mark.parametrize("content", [b"", b'{"name": 1}', None])
def test_a_damaged_file_is_named(exported: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MtllmError, match=str(tmp_path)):
        Translator.load(tmp_path)


def test_an_existing_folder_is_kept(trained: Path, exported: Path) -> None:
    result = CliRunner().invoke(command, [str(trained), "--out", str(exported)])
    assert isinstance(result.exception, UsageError)
    assert Translator.load(exported).manifest.quantization == "float32"
