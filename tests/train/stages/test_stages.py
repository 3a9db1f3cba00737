"""Stages of self-distillation on a tiny encoder and a tiny LLM, with resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from mtllm_edge.errors import EngineError, UsageError
from mtllm_edge_train.checkpoints.config import EncoderConfig, LlmConfig, LoraConfig
from mtllm_edge_train.checkpoints.tensors import read_bridge, read_head, read_lora
from mtllm_edge_train.data.batches import BatchOrder
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.models.loading import load_stack
from mtllm_edge_train.models.stack import encode_english, pad_right
from mtllm_edge_train.stages.adapt import Adaptation
from mtllm_edge_train.stages.distill import Distillation
from mtllm_edge_train.stages.finetune import FineTuning
from mtllm_edge_train.training import loop, settings
from mtllm_edge_train.training.loop import run_stage
from tests.fixtures.tiny_checkpoint import save_encoder
from tests.fixtures.tiny_llms import save_llm_and_tokenizer
from tests.fixtures.tolerances import TRAINING, assert_vectors_close
from tests.train.interruption import killed_after_save

LORA = LoraConfig(rank=2, alpha=4.0, dropout=0.1)
TEXTS = [
    f"The {noun} is {quality} today." for noun in ("team", "hotel", "rocket") for quality in ("good", "bad", "new")
]
DATA = LabeledTexts(TEXTS, ["praise" if "good" in text else "other" for text in TEXTS])
SETTINGS = settings.LoopSettings(batch_size=4, learning_rate=1e-3, save_every=3, log_every=1, dtype="float32")


@pytest.fixture(scope="module", params=["bert", "m2m_100"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    folder = tmp_path_factory.mktemp("models")
    save_encoder(folder / "encoder", request.param)
    save_llm_and_tokenizer(folder / "llm")
    return EncoderConfig(source=str(folder / "encoder"), max_tokens=64)


def llm_beside(encoder: EncoderConfig) -> LlmConfig:
    return LlmConfig(source=str(Path(encoder.source).with_name("llm")), layers=2, attention="causal")


def run_adapt(
    out: Path,
    encoder: EncoderConfig,
    settings: settings.LoopSettings = SETTINGS,
    *,
    steps: int = 6,
    force: bool = False,
) -> None:
    stage = Adaptation(
        texts=TEXTS,
        name="test",
        encoder=encoder,
        llm=llm_beside(encoder),
        lora=LORA,
        steps=steps,
        settings=settings,
        bridge_learning_rate=2e-3,
    )
    run_stage(stage, out, force=force)


def weights(folder: Path) -> dict[str, Any]:
    weight, bias = read_bridge(folder)
    return {"weight": weight, "bias": bias, **read_lora(folder)}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, encoder: EncoderConfig) -> Path:
    out = tmp_path_factory.mktemp("runs") / "adapted"
    run_adapt(out, encoder)
    return out


def test_resumed_run_gives_the_same_result(tmp_path: Path, encoder: EncoderConfig, adapted: Path) -> None:
    with killed_after_save():
        run_adapt(tmp_path / "run", encoder)
    run_adapt(tmp_path / "run", encoder)
    expected, found = weights(adapted), weights(tmp_path / "run")
    for name in expected:
        assert_vectors_close(found[name].ravel(), expected[name].ravel(), TRAINING)
    losses = [
        [line.split('"loss": ')[1] for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (adapted, tmp_path / "run")
    ]
    assert [float(text.split(",")[0]) for text in losses[0]] == pytest.approx(
        [float(text.split(",")[0]) for text in losses[1]], rel=1e-5
    )


def test_a_finished_run_is_not_overwritten(encoder: EncoderConfig, adapted: Path) -> None:
    before = weights(adapted)
    with pytest.raises(UsageError, match="finished run"):
        run_adapt(adapted, encoder)
    after = weights(adapted)
    assert all((before[name] == after[name]).all() for name in before)


def test_unfinished_run_is_resumed_only_with_the_same_settings(tmp_path: Path, encoder: EncoderConfig) -> None:
    (tmp_path / "run").mkdir()
    state = '{"stage": "adapt", "fingerprint": "0123", "step": 3, "finished": false}'
    (tmp_path / "run" / "training.json").write_text(state)
    with pytest.raises(UsageError, match="other settings or data"):
        run_adapt(tmp_path / "run", encoder)
    assert (tmp_path / "run" / "training.json").read_text() == state


def test_unusable_output_folder_is_found_before_training(tmp_path: Path, encoder: EncoderConfig) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    (tmp_path / ".run.0123.old").mkdir()
    for out, force, message in (
        (tmp_path / "file" / "run", False, "cannot write to"),
        (tmp_path / "file", False, "is not an unfinished run"),
        (tmp_path / "notes", True, "--force does not replace it"),
        (tmp_path / "run", False, "stopped while it saved"),
    ):
        with pytest.raises(UsageError, match=message):
            run_adapt(out, encoder, steps=10**9, force=force)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.0123.old", "file", "notes"]


def test_full_disk_keeps_the_last_save(tmp_path: Path, encoder: EncoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saves = loop.save_file, []

    def save_once(tensors: Any, path: Path) -> None:
        saves.append(path)
        if len(saves) > 1:
            raise SafetensorError("No space left on device")
        save(tensors, path)

    monkeypatch.setattr(loop, "save_file", save_once)
    with pytest.raises(EngineError, match=r"could not be saved.*No space left.*make room"):
        run_adapt(tmp_path / "run", encoder, replace(SETTINGS, save_every=2))
    monkeypatch.undo()
    assert '"step":2' in (tmp_path / "run" / "training.json").read_text()
    run_adapt(tmp_path / "run", encoder, replace(SETTINGS, save_every=2))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_adaptation_lowers_the_loss(tmp_path: Path, encoder: EncoderConfig) -> None:
    settings = replace(SETTINGS, batch_size=9, learning_rate=1e-2, save_every=100)
    run_adapt(tmp_path / "run", encoder, settings, steps=40)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    first, last = (float(line.split('"fvu": ')[1].split(",")[0]) for line in (lines[0], lines[-1]))
    assert last < 0.7 * first


def test_fine_tuning_then_distillation(tmp_path: Path, encoder: EncoderConfig, adapted: Path) -> None:
    settings = replace(SETTINGS, batch_size=9, learning_rate=1e-2, save_every=100)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    tuning = FineTuning(
        tasks={"tone": DATA}, name="teacher", llm=llm_beside(encoder), lora=LORA, settings=settings, epochs=20
    )
    run_stage(tuning, teacher)
    last = (teacher / "log.jsonl").read_text().splitlines()[-1]
    assert float(last.split('"accuracy": ')[1].split(",")[0]) >= 8 / 9
    run_stage(
        Distillation(texts=TEXTS, adapted=adapted, teacher=teacher, name="student", settings=settings, epochs=40),
        student,
    )
    fvu = [float(line.split('"fvu": ')[1].split(",")[0]) for line in (student / "log.jsonl").read_text().splitlines()]
    assert fvu[-1] < 0.7 * fvu[0]
    np.testing.assert_array_equal(read_head(student, "tone")[0], read_head(teacher, "tone")[0])
    np.testing.assert_array_equal(read_bridge(student)[0], read_bridge(adapted)[0])
    assert any((read_lora(student)[name] != tensor).any() for name, tensor in read_lora(adapted).items())
    stack = load_stack(student)
    with torch.inference_mode():
        logits_NC = stack.heads["tone"](stack(*pad_right(encode_english(stack.tokenizer, TEXTS))))
    assert logits_NC.shape == (9, 2)
    assert torch.isfinite(logits_NC).all()


def test_distillation_checks_the_teacher(tmp_path: Path, adapted: Path) -> None:
    stage = Distillation(texts=TEXTS, adapted=adapted, teacher=adapted, name="x", settings=SETTINGS, epochs=1)
    with pytest.raises(UsageError, match="no fine-tuned LLM"):
        run_stage(stage, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_batch_order_covers_an_epoch_and_is_reproducible() -> None:
    order = BatchOrder(list(range(50)), 8, seed=3)
    epoch = np.concatenate([order[step] for step in range(order.batches_per_epoch)])
    assert len(set(epoch.tolist())) == 48
    again = BatchOrder(list(range(50)), 8, seed=3)
    for step in (11, 2, 7):
        np.testing.assert_array_equal(again[step], order[step])
    assert not np.array_equal(order[0], order[order.batches_per_epoch])
