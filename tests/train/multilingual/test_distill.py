"""Multilingual distillation: trained and frozen parts, strides, resuming, and checkpoints with an encoder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.errors import UsageError
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_train.checkpoints.config import EncoderConfig, LlmConfig, StackConfig
from mtllm_edge_train.checkpoints.tensors import read_bridge, read_head, read_lora, weights_digest
from mtllm_edge_train.models.loading import load_stack
from mtllm_edge_train.models.stack import pad_right
from mtllm_edge_train.multilingual.distill import MultilingualDistillation
from mtllm_edge_train.multilingual.pairs import SentencePair
from mtllm_edge_train.stages.adapt import Adaptation
from mtllm_edge_train.stages.distill import Distillation
from mtllm_edge_train.stages.finetune import FineTuning
from mtllm_edge_train.training import settings
from mtllm_edge_train.training.loop import run_stage
from tests.fixtures.tiny_checkpoint import save_encoder
from tests.fixtures.tiny_llms import save_llm_and_tokenizer
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close
from tests.train.interruption import killed_after_save
from tests.train.stages.test_stages import DATA, LORA, SETTINGS, TEXTS

WORDS = {
    "The": "Das",
    "is": "ist",
    "today.": "heute.",
    "team": "Team",
    "rocket": "Rakete",
    "good": "gut",
    "bad": "übel",
}


def german(text: str) -> str:
    return " ".join(WORDS.get(word, word) for word in text.split())


PAIRS = [SentencePair("deu_Latn", german(text), text) for text in TEXTS] + [
    SentencePair("eng_Latn", text, text, 0.2) for text in TEXTS
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `start` and a `teacher`."""
    folder = tmp_path_factory.mktemp("runs")
    save_encoder(folder / "encoder", "bert")
    encoder = EncoderConfig(source=str(folder / "encoder"), max_tokens=64)
    save_llm_and_tokenizer(folder / "llm")
    llm = LlmConfig(source=str(folder / "llm"), layers=None, attention="causal")
    options: Any = {"llm": llm, "lora": LORA, "settings": SETTINGS}
    start = Adaptation(texts=TEXTS, name="s", encoder=encoder, steps=3, bridge_learning_rate=2e-3, **options)
    run_stage(start, folder / "start")
    run_stage(FineTuning(tasks={"tone": DATA}, name="t", epochs=1, **options), folder / "teacher")
    return folder


def run(runs: Path, out: Path, settings: settings.LoopSettings = SETTINGS, *, steps: int = 6, **options: Any) -> None:
    chosen: dict[str, Any] = {"pairs": PAIRS, "start": runs / "start", "teacher": runs / "teacher", **options}
    stage = MultilingualDistillation(
        name="m", max_tokens=64, steps=steps, settings=settings, bridge_learning_rate=1e-2, **chosen
    )
    run_stage(stage, out)


def logged(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "log.jsonl").read_text().splitlines()]


TRAINED: dict[str, Any] = {"encoder_learning_rate": 1e-3, "labeled": {"tone": DATA}}


@pytest.fixture(scope="module")
def learned(runs: Path) -> Path:
    """A checkpoint with a trained encoder and heads trained on soft labels."""
    run(runs, runs / "learned", replace(SETTINGS, learning_rate=1e-2, save_every=20), steps=20, **TRAINED)
    return runs / "learned"


def states(folder: Path) -> torch.Tensor:
    """Encoder states of a checkpoint for a text (1, L, D)."""
    stack = load_stack(folder)
    states_1LD = stack.encode(*pad_right(stack.tokenizer.encode([PAIRS[0].text])))
    assert not states_1LD.requires_grad  # a frozen encoder stores nothing for a backward pass
    return states_1LD


@pytest.mark.parametrize("stride", [1, 3])
def test_student_vectors_of_translations_approach_the_teachers(runs: Path, tmp_path: Path, stride: int) -> None:
    run(
        runs,
        tmp_path / "m",
        replace(SETTINGS, batch_size=9, learning_rate=1e-2, save_every=50),
        steps=50,
        stride=stride,
    )
    found = logged(tmp_path / "m", "fvu")
    assert np.mean(found[-5:]) < 0.7 * found[0]
    assert StackConfig.load(tmp_path / "m").bridge.stride == stride
    assert StackConfig.load(tmp_path / "m").encoder == StackConfig.load(runs / "start").encoder
    assert not (tmp_path / "m" / "encoder").exists()
    np.testing.assert_array_equal(read_head(tmp_path / "m", "tone")[0], read_head(runs / "teacher", "tone")[0])


def test_larger_stride_starts_with_the_linear_bridge_on_mean_states(runs: Path, tmp_path: Path) -> None:
    run(runs, tmp_path / "m", replace(SETTINGS, learning_rate=0.0, warmup=1.0), steps=1, stride=2)
    weight, _ = read_bridge(runs / "start")
    spread, _ = read_bridge(tmp_path / "m")
    # the one step moves the bridge by at most its learning rate
    np.testing.assert_allclose(spread, np.concatenate([weight, weight], 1) / 2, atol=1.1e-2)
    for name, tensor in read_lora(runs / "start").items():
        np.testing.assert_array_equal(read_lora(tmp_path / "m")[name], tensor)


@pytest.mark.parametrize("options", [{}, TRAINED], ids=["frozen", "trained"])
def test_resumed_run_gives_the_same_result(runs: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run(runs, tmp_path / "whole", **options)
    with killed_after_save():
        run(runs, tmp_path / "run", **options)
    run(runs, tmp_path / "run", **options)
    for name in ("loss", "fvu", "kl_tone") if options else ("loss", "fvu"):
        assert logged(tmp_path / "run", name) == pytest.approx(logged(tmp_path / "whole", name), rel=1e-5)
    stacks = [load_stack(tmp_path / name) for name in ("whole", "run")]
    ids_NL, mask_NL = pad_right(stacks[0].tokenizer.encode([PAIRS[0].text]))
    with torch.no_grad():
        torch.testing.assert_close(stacks[0](ids_NL, mask_NL), stacks[1](ids_NL, mask_NL))
    torch.testing.assert_close(stacks[0].heads["tone"].weight, stacks[1].heads["tone"].weight)


def test_encoder_is_trained_except_for_its_word_embeddings(runs: Path, learned: Path) -> None:
    before, after = (load_file(folder / "encoder" / "model.safetensors") for folder in (runs, learned))
    assert before.keys() == after.keys()
    assert [name for name in before if (before[name] == after[name]).all()] == ["embeddings.word_embeddings.weight"]
    assert StackConfig.load(learned).encoder == EncoderConfig(source="encoder", max_tokens=64)
    assert (learned / "encoder" / "tokenizer.json").read_bytes() == (runs / "encoder" / "tokenizer.json").read_bytes()


def test_heads_are_trained_on_soft_labels(runs: Path, learned: Path) -> None:
    divergences, errors = logged(learned, "kl_tone"), logged(learned, "fvu")
    assert np.mean(divergences[-5:]) < 0.5 * np.mean(divergences[:5])
    assert np.mean(errors[-5:]) < 0.8 * errors[0]
    assert (read_head(learned, "tone")[0] != read_head(runs / "teacher", "tone")[0]).all()


def test_checkpoint_with_an_encoder_can_be_moved_and_trained_further(runs: Path, learned: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(learned, moved)
    torch.testing.assert_close(states(moved), states(learned), rtol=0, atol=0)
    assert (states(moved) - states(runs / "start")).abs().max() > 0.01
    run(runs, tmp_path / "strided", steps=1, start=moved, stride=2)
    folders = {"adapted": moved, "teacher": runs / "teacher"}
    stage = Distillation(texts=TEXTS, name="d", settings=replace(SETTINGS, batch_size=9), epochs=1, **folders)
    run_stage(stage, tmp_path / "distilled")
    sha256 = weights_digest(moved)
    (moved / "encoder" / "model.safetensors").unlink()
    assert weights_digest(moved) != sha256  # another encoder is another checkpoint
    shutil.rmtree(moved)
    for name in ("strided", "distilled"):
        torch.testing.assert_close(states(tmp_path / name), states(learned), rtol=0, atol=0)


def test_checkpoint_with_an_encoder_is_exported(runs: Path, learned: Path, tmp_path: Path) -> None:
    manifest = export_bundle(learned, tmp_path / "bundle", encoder_quantization="float32", llm_quantization="f32")
    assert min(row.cosine_min for row in manifest.parity) >= 0.9999
    ids = load_stack(learned).tokenizer.encode([PAIRS[0].text])[0].ids
    [found_LD] = CTranslate2Encoder(tmp_path / "bundle" / "encoder", manifest.encoder, threads=1).encode([ids])
    assert_vectors_close(found_LD, states(learned)[0], FLOAT32)
    assert np.abs(found_LD - states(runs / "start")[0].numpy()).max() > 0.01


def test_invalid_options(runs: Path, tmp_path: Path) -> None:
    run(runs, tmp_path / "two", steps=1, stride=2)
    for options, message in (
        ({"pairs": []}, "needs sentence pairs"),
        ({"start": runs / "teacher"}, "has no encoder"),
        ({"labeled": {"mood": DATA}}, "has no task 'mood'"),
        ({"start": tmp_path / "two", "stride": 3}, "stride 2, which stride 3 cannot start from"),
    ):
        with pytest.raises(UsageError, match=message):
            run(runs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
