"""The recipe of the paper's model, on tiny models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import peft
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge_train.checkpoints.config import EncoderConfig
from mtllm_edge_train.models.stack import LlmBody
from mtllm_edge_train.recipes import nllb_llama3
from mtllm_edge_train.recipes.llm2vec import merge_adapters
from tests.fixtures.tiny_checkpoint import save_encoder

LLM_SHAPE = {
    **{"vocab_size": 70, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 80},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}


def data(folder: Path, texts: int = 8) -> Path:
    """Write DATA: an English file, and a task with a German test file."""
    rows = [f"The {noun} is {'good' if i % 2 else 'bad'}." for i, noun in enumerate(["hotel", "team"] * (texts // 2))]
    labels = ["praise" if "good" in row else "blame" for row in rows]
    test = folder / "nusax" / "test"
    test.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / "english.parquet")
    for file in (folder / "nusax" / "train.parquet", test / "deu_Latn.parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": rows, "label": labels}), file)
    return folder


def save_llm(folder: Path, encoder: Path) -> Path:
    """Write a Llama with the byte tokenizer of the tiny encoder."""
    torch.manual_seed(3)
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    config = transformers.LlamaConfig(**{**LLM_SHAPE, "vocab_size": tokenizer.get_vocab_size()})
    transformers.LlamaModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder


def save_adapter(folder: Path, llm: Path) -> Path:
    """Write an adapter of the query matrices in the format of peft, with large weights."""
    model = peft.get_peft_model(
        transformers.AutoModel.from_pretrained(llm), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
    )
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(tensor)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    save_encoder(tmp_path / "encoder", "m2m_100")
    llm = save_llm(tmp_path / "llm", tmp_path / "encoder")
    adapters = {name: save_adapter(tmp_path / name, llm) for name in ("first", "second")}
    return {"encoder": tmp_path / "encoder", "llm": llm, **adapters}


def test_adapters_are_merged_one_after_the_other(tmp_path: Path, models: dict[str, Path]) -> None:
    merge_adapters(str(models["llm"]), [str(models["first"]), str(models["second"])], tmp_path / "merged")
    name = "layers.1.self_attn.q_proj.weight"
    weight = transformers.AutoModel.from_pretrained(models["llm"]).state_dict()[name]
    for adapter in ("first", "second"):
        state = peft.load_peft_weights(str(models[adapter]), device="cpu")
        a, b = (state[f"base_model.model.layers.1.self_attn.q_proj.lora_{side}.weight"] for side in "AB")
        weight = weight + 2.0 * b @ a
    merged = transformers.AutoModel.from_pretrained(tmp_path / "merged").state_dict()
    np.testing.assert_allclose(merged[name].float(), weight, rtol=0.02, atol=0.05)
    with pytest.raises(ModelError, match="cannot be loaded as an adapter"):
        merge_adapters(str(models["llm"]), [str(models["llm"])], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_recipe_runs_and_resumes(tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nllb_llama3, "ENCODER", EncoderConfig(source=str(models["encoder"]), max_tokens=64))
    monkeypatch.setattr(nllb_llama3, "LLM", str(models["llm"]))
    monkeypatch.setattr(nllb_llama3, "LLM2VEC", (str(models["first"]), str(models["second"])))
    monkeypatch.setattr(nllb_llama3, "STEPS", 2)
    monkeypatch.setattr(nllb_llama3, "BATCH_SIZE", 4)
    monkeypatch.setattr(nllb_llama3, "EPOCHS", {"nusax": 1})
    checkpointed: list[LlmBody] = []
    monkeypatch.setattr(LlmBody, "enable_gradient_checkpointing", lambda llm: checkpointed.append(llm))
    folder, out = data(tmp_path / "data"), tmp_path / "out"
    nllb_llama3.run(folder, out, device="cpu")
    assert len(checkpointed) == 3  # the students of adapt and distill, and the fine-tuned teacher
    scores = json.loads((out / "nusax-scores.jsonl").read_text())
    assert (scores["task"], scores["language"], scores["texts"]) == ("nusax", "deu_Latn", 8)
    assert 0 <= scores["macro_f1"] <= 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    nllb_llama3.run(folder, out, device="cpu")  # all stages are finished
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before


def test_incomplete_data_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nllb_llama3", str(tmp_path / "nothing"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_info:
        nllb_llama3.main()
    assert str(exit_info.value) == (
        f"error: {tmp_path / 'nothing' / 'english.parquet'} is no file; DATA needs english.parquet, nusax/train.parquet"
    )
    assert capsys.readouterr().out == ""
    folder = data(tmp_path / "data")
    (folder / "nusax" / "test" / "deu_Latn.parquet").unlink()
    with pytest.raises(UsageError, match="needs a test file"):
        nllb_llama3.run(folder, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
