"""The recipe of the paper's model: its dry run against counts by hand, and the whole of it on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_train.checkpoints.config import EncoderConfig, LoraConfig
from mtllm_edge_train.models.loading import load_stack
from mtllm_edge_train.models.stack import LlmBody
from mtllm_edge_train.recipes import cost_model, dry_run, nllb_llama3
from mtllm_edge_train.recipes.llm2vec import merge_adapters
from tests.fixtures.tiny_checkpoint import save_checkpoint, save_encoder

TINY = dry_run.Run(
    encoder={
        **{"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "encoder_ffn_dim": 24, "encoder_attention_heads": 2},
        **{"decoder_layers": 1, "max_position_embeddings": 64},
    },
    llm={
        **{"vocab_size": 70, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 80},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
    },
    lora=LoraConfig(rank=4, alpha=8.0, dropout=0.05),
    steps=10,
    batch_size=16,
    tokens=20,
    mfu=0.5,
)


def parameters(run: dry_run.Run) -> dict[str, int]:
    """Counted by hand: biases in the encoder, none in the LLM, keys and values narrower than queries."""
    d, f, layers = run.encoder["d_model"], run.encoder["encoder_ffn_dim"], run.encoder["encoder_layers"]
    w, m, n = run.llm["hidden_size"], run.llm["intermediate_size"], run.llm["num_hidden_layers"]
    kv = w // run.llm["num_attention_heads"] * run.llm["num_key_value_heads"]
    attention, mlp, norm = 4 * (d * d + d), d * f + f + f * d + d, 2 * d
    return {
        "encoder_embedding": run.encoder["vocab_size"] * d,
        "encoder_layers": layers * (attention + mlp + 2 * norm) + norm,
        "llm_embedding": run.llm["vocab_size"] * w,
        "llm_matrices": n * (2 * w * w + 2 * w * kv + 3 * w * m),
        "llm_norms": n * 2 * w + w,
        "bridge": w * d + w,
        "lora": n * run.lora.rank * (2 * (w + w) + 2 * (w + kv) + 3 * (w + m)),
    }


def test_parameters_and_operations_of_a_tiny_stack() -> None:
    figures = dry_run.report(TINY)
    expected = parameters(TINY)
    assert expected.items() <= figures["parameters"].items()
    texts, length = TINY.steps * TINY.batch_size, TINY.tokens
    tokens = texts * length
    assert figures["tokens"] == {"student": tokens, "teacher": tokens}
    encoder_matrices = 2 * (4 * 16 * 16 + 2 * 16 * 24)
    body, lora, bridge = expected["llm_matrices"], expected["lora"], 32 * 16
    attention, encoder_attention = 3 * 2 * length * 32, 2 * 2 * length * 16  # products of query, key and value
    flops = figures["flops"]
    assert flops["teacher"] == 2 * tokens * (body + attention)
    last = (
        TINY.llm["num_hidden_layers"] * TINY.lora.rank * 32
    )  # of a layer, lora_B of down_proj: nothing needs it again
    assert flops["recomputed"] == 2 * tokens * (body + lora - last + attention)
    # Backward: through frozen matrices once, into adapters and attention twice, into the bridge's weight alone.
    forward = encoder_matrices + encoder_attention + bridge + body + lora + attention
    assert flops["student"] == 2 * tokens * (forward + bridge + body + 2 * lora + 2 * attention)


def test_every_gradient_is_the_bridges_or_an_adapters() -> None:
    stack = dry_run.build(TINY)
    stack.bridge.bias.requires_grad_(False)
    with pytest.raises(ModelError, match=r"bridge\.bias gets no gradient"):
        dry_run.count_flops(stack, 4)


def data(folder: Path, texts: int = 8) -> Path:
    """DATA with an English file, and a task with a German test file."""
    rows = [f"The {noun} is {'good' if i % 2 else 'bad'}." for i, noun in enumerate(["hotel", "team"] * (texts // 2))]
    labels = ["praise" if "good" in row else "blame" for row in rows]
    test = folder / "nusax" / "test"
    test.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / "english.parquet")
    for file in (folder / "nusax" / "train.parquet", test / "deu_Latn.parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": rows, "label": labels}), file)
    return folder


PEAK_OF = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""
"""Runs a command from a small process: Linux counts what the parent held at the fork as the child's."""


def test_the_true_shapes_take_little_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PEAK_OF, sys.executable, "-m", "mtllm_edge_train.recipes.nllb_llama3"]
    command += [str(data(tmp_path / "data")), str(tmp_path / "out"), "--dry-run"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(process.stderr.splitlines()[-1]) * 1024 < 1.5e9  # Linux counts in KiB
    assert not (tmp_path / "out").exists()
    figures = json.loads(process.stdout.splitlines()[-1])
    expected = parameters(nllb_llama3.described(512, 0.35))
    assert expected.items() <= figures["parameters"].items()
    assert expected["llm_matrices"] == pytest.approx(6.98e9, rel=1e-3)
    assert expected["encoder_layers"] == pytest.approx(0.151e9, rel=1e-2)
    assert figures["parameters"]["trained"] == expected["bridge"] + expected["lora"]
    once = 8 * 512
    assert figures["task_tokens"] == {
        "nusax": {"fine-tuning": 20 * once, "distillation, teacher": once, "distillation": 20 * once}
    }
    assert figures["frozen_bytes"]["bf16"] == 2 * figures["parameters"]["frozen"]
    assert 0.25 < figures["paper"]["mfu"]["without checkpointing"] < figures["paper"]["mfu"]["with checkpointing"] < 0.5
    for row in figures["devices"]:
        for plan in row["plans"]:
            assert plan["gpus"] * plan["texts"] * plan["accumulation"] == 256


def test_what_does_not_fit_has_no_plan() -> None:
    device = cost_model.Device("small", 1, 1e12)
    settings: dict[str, Any] = {"batch_size": 24, "flops": 3.6e15, "mfu": 0.5}
    assert cost_model.plan_devices(device, fixed_bytes=2**30, bytes_per_text=1, **settings) == []
    plans = cost_model.plan_devices(device, fixed_bytes=0, bytes_per_text=2**30 // 8, **settings)
    assert [tuple(plan) for plan in plans] == [(1, 6, 4, 2.0), (2, 6, 2, 1.0), (4, 6, 1, 0.5), (8, 3, 1, 0.25)]


def test_activations_are_those_that_autograd_keeps() -> None:
    torch.manual_seed(0)
    lora = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
    shape = {**TINY.llm, "hidden_size": 64, "intermediate_size": 160}
    saved: list[int] = []
    for layers in (2, 3):
        config = transformers.LlamaConfig(**{**shape, "num_hidden_layers": layers})
        llm = LlmBody(transformers.LlamaModel(config).to(torch.bfloat16), bidirectional=True, lora=lora).train()
        weights = {tensor.untyped_storage().data_ptr() for tensor in llm.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, weights: set[int] = weights, kept: dict[int, int] = kept) -> torch.Tensor:
            if tensor.shape[:1] == (8,) or tensor.shape[:1] == (8 * 32,):  # neither weights nor positions
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        inputs_NLD = torch.randn(8, 32, 64, requires_grad=True)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            pooled_ND = llm(torch.ones(8, 32, dtype=torch.long), inputs_NLD=inputs_NLD.bfloat16())
        assert pooled_ND.requires_grad
        saved.append(sum(kept.values()))
    stack = dry_run.build(dry_run.Run(**{**vars(TINY), "llm": shape, "lora": lora}))
    assert cost_model.estimate_activations(stack, lora).layer == pytest.approx(
        (saved[1] - saved[0]) / (8 * 32), rel=0.02
    )


def test_dropout_adds_its_masks() -> None:
    with_dropout, without = (
        cost_model.estimate_activations(dry_run.build(TINY), lora)
        for lora in (TINY.lora, LoraConfig(rank=4, dropout=0))
    )
    assert with_dropout.layer - without.layer == 5 * 32 + 32 + 80
    assert without.per_token(checkpointing=True) < without.per_token(checkpointing=False)


def test_the_bundle_is_as_large_as_estimated(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", family="m2m_100", attention="bidirectional")
    sizes = cost_model.bundle_bytes(load_stack(checkpoint))
    for quantization in ("q8_0", "q4_0"):
        bundle = tmp_path / quantization
        export_bundle(checkpoint, bundle, llm_quantization=quantization)  # type: ignore[arg-type]
        found = {
            "bridge": bundle / "bridge.safetensors",
            "encoder_int8": bundle / "encoder" / "model.bin",
            f"llm_{quantization}": bundle / "llm.gguf",
        }
        for part, path in found.items():
            assert sizes[part] <= path.stat().st_size < sizes[part] + 8192, part


def save_llm(folder: Path, encoder: Path) -> Path:
    """A Llama with the tiny encoder's byte tokenizer."""
    torch.manual_seed(3)
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    config = transformers.LlamaConfig(**{**TINY.llm, "vocab_size": tokenizer.get_vocab_size()})
    transformers.LlamaModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder


def save_adapter(folder: Path, llm: Path) -> Path:
    """An adapter of the query matrices in peft's format, large enough to be seen."""
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


def test_the_whole_recipe(tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(checkpointed) == 3  # the students of adapt and distill, and the teacher while it is fine-tuned
    scores = json.loads((out / "nusax-scores.jsonl").read_text())
    assert (scores["task"], scores["language"], scores["texts"]) == ("nusax", "deu_Latn", 8)
    assert 0 <= scores["macro_f1"] <= 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    nllb_llama3.run(folder, out, device="cpu")  # all is done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before


def test_incomplete_data_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nllb_llama3", str(tmp_path / "nothing"), str(tmp_path / "out"), "--dry-run"])
    with pytest.raises(SystemExit) as exit_info:
        nllb_llama3.main()
    assert str(exit_info.value) == (
        f"error: {tmp_path / 'nothing' / 'english.parquet'} is no file; DATA needs english.parquet, nusax/train.parquet"
    )
    assert capsys.readouterr().out == ""
    for option, value, message in (("--tokens", "513", "choose 1 to 512"), ("--mfu", "0", "above 0")):
        arguments = ["nllb_llama3", str(data(tmp_path / option)), str(tmp_path / "out"), "--dry-run", option, value]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match=message):
            nllb_llama3.main()
    folder = data(tmp_path / "data")
    (folder / "nusax" / "test" / "deu_Latn.parquet").unlink()
    with pytest.raises(UsageError, match="needs a test file"):
        nllb_llama3.run(folder, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
