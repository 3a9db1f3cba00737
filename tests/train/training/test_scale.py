"""Training at the scale of the paper: streams, gradient accumulation, cached teacher, exact resuming, two processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from mtllm_edge.errors import MtllmError, UsageError
from mtllm_edge_train.checkpoints.config import EncoderConfig, LlmConfig, LoraConfig
from mtllm_edge_train.checkpoints.tensors import read_bridge, read_lora
from mtllm_edge_train.cli import train
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.data.streams import TextStream
from mtllm_edge_train.models.stack import LlmBody
from mtllm_edge_train.multilingual.train_translator import TranslatorTraining
from mtllm_edge_train.stages.adapt import Adaptation
from mtllm_edge_train.stages.distill import Distillation
from mtllm_edge_train.stages.finetune import FineTuning
from mtllm_edge_train.training import settings
from mtllm_edge_train.training.distributed import ProcessGroup
from mtllm_edge_train.training.gradient_accumulation import micro_batches
from mtllm_edge_train.training.loop import run_stage
from tests.fixtures.tiny_checkpoint import save_encoder
from tests.fixtures.tiny_llms import save_llm_and_tokenizer
from tests.fixtures.tolerances import TRAINING, assert_vectors_close
from tests.train.interruption import killed_after_save

TEXTS = [f"Sentence {number} is {'very ' * (number % 5)}short." for number in range(37)]
SETTINGS = settings.LoopSettings(batch_size=8, learning_rate=1e-2, save_every=3, log_every=1, dtype="float32")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_encoder(folder / "encoder", "bert")
    save_llm_and_tokenizer(folder / "llm")
    (folder / "texts").mkdir()
    for part in range(3):
        (folder / "texts" / f"{part}.txt").write_text("".join(text + "\n" for text in TEXTS[part::3]))
    return folder


def llm(models: Path) -> LlmConfig:
    return LlmConfig(source=str(models / "llm"), layers=2, attention="causal")


def run(
    models: Path, out: Path, settings: settings.LoopSettings = SETTINGS, *, dropout: float = 0.1, **options: Any
) -> None:
    stage = Adaptation(
        name="test",
        encoder=EncoderConfig(source=str(models / "encoder"), max_tokens=64),
        llm=llm(models),
        lora=LoraConfig(rank=2, alpha=4.0, dropout=dropout),
        settings=settings,
        bridge_learning_rate=1e-2,
        **{"texts": TextStream([models / "texts"]), "steps": 7, **options},
    )
    run_stage(stage, out)


def history(out: Path, *names: str) -> list[list[float]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [[entry[name] for name in names or ("loss", "mse", "fvu", "learning_rate")] for entry in entries]


def weights(out: Path) -> np.ndarray:
    return np.concatenate([*(part.ravel() for part in read_bridge(out)), *(x.ravel() for x in read_lora(out).values())])


def forbid_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail from here on if the teacher reads a text."""

    def read(*arguments: object, **options: object) -> Tensor:
        raise AssertionError("the teacher was called")

    monkeypatch.setattr(LlmBody, "embed", read)


def test_the_defaults_are_the_papers() -> None:
    defaults = {option.name: option.default for option in train.adapt.params}
    paper = {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.05, "max_tokens": 512, "attention": "causal"}
    paper |= {"learning_rate": 2e-4, "warmup": 0.01, "steps": 10_000, "batch_size": 256, "accumulate": 1}
    assert {name: defaults[name] for name in paper} == paper


def test_resumed_run_gives_the_same_result(models: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, accumulate=3)
    run(models, tmp_path / "whole", settings, teacher_cache=tmp_path / "cache")
    for kill in ("at step 3", "at step 6"):
        with killed_after_save():
            run(models, tmp_path / "killed", settings, teacher_cache=tmp_path / f"cache {kill}")
    run(models, tmp_path / "killed", settings, teacher_cache=tmp_path / "cache at step 6")
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    np.testing.assert_array_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_run_with_other_texts_is_not_resumed(models: Path, tmp_path: Path) -> None:
    with killed_after_save():
        run(models, tmp_path / "run")
    for texts in (TEXTS[1:], [*TEXTS[:-1], "another"]):
        with pytest.raises(UsageError, match="other settings or data"):
            run(models, tmp_path / "run", texts=texts)


def test_invalid_texts_are_found_before_training(models: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes("".join(f"{text}\n" for text in TEXTS).encode() + b"\xff\n")
    with pytest.raises(MtllmError, match=r"bad.txt line 38 is not valid UTF-8"):
        run(models, tmp_path / "run", texts=TextStream([tmp_path / "bad.txt"]), steps=1)
    with pytest.raises(UsageError, match="at least two texts"):
        run(models, tmp_path / "run", texts=["one"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("accumulate", [2, 3, 8, 100])
def test_accumulation_gives_the_same_result(models: Path, tmp_path: Path, accumulate: int) -> None:
    for name, parts in (("whole", 1), ("divided", accumulate)):
        run(models, tmp_path / name, replace(SETTINGS, accumulate=parts), dropout=0.0)
    assert_vectors_close(history(tmp_path / "divided"), history(tmp_path / "whole"), TRAINING)
    assert_vectors_close(weights(tmp_path / "divided"), weights(tmp_path / "whole"), TRAINING)


def test_accumulation_in_the_other_stages(models: Path, tmp_path: Path) -> None:
    run(models, tmp_path / "adapted", dropout=0.0)
    data = LabeledTexts(TEXTS, ["long" if "very" in text else "short" for text in TEXTS])
    lora = LoraConfig(rank=2, alpha=4.0, dropout=0.0)
    for parts in (1, 3):
        settings = replace(SETTINGS, accumulate=parts)
        teacher, student = tmp_path / f"teacher {parts}", tmp_path / f"student {parts}"
        common: dict[str, Any] = {"settings": settings, "epochs": 1}
        run_stage(FineTuning(tasks={"tone": data}, name="t", llm=llm(models), lora=lora, **common), teacher)
        folders = {"adapted": tmp_path / "adapted", "teacher": tmp_path / "teacher 1"}
        run_stage(Distillation(texts=TEXTS, name="s", **folders, **common), student)
    for stage, names in (("teacher", ("loss", "accuracy")), ("student", ("loss", "mse", "fvu"))):
        whole, divided_ = (history(tmp_path / f"{stage} {parts}", *names) for parts in (1, 3))
        assert_vectors_close(divided_, whole, TRAINING)


def test_micro_batches_of_all_processes_contain_every_item_once() -> None:
    for batch in (list(range(11)), np.arange(11)):
        for size, accumulate in ((1, 1), (3, 1), (3, 2), (11, 4)):
            pieces = [
                piece for rank in range(size) for piece in micro_batches(batch, accumulate, ProcessGroup(rank, size))
            ]
            assert sorted(int(item) for part, _ in pieces for item in part) == list(range(11))
            assert sum(weight for _, weight in pieces) == pytest.approx(1)
            assert max(len(part) for part, _ in pieces) == math.ceil(math.ceil(11 / size) / accumulate)
    weights_of_choices = [
        weight
        for _, weight in micro_batches([[1, 2, 3], [4], [5]], 2, ProcessGroup(), lambda part: sum(map(len, part)))
    ]
    assert weights_of_choices == [4 / 5, 1 / 5]
    with pytest.raises(UsageError, match="2 texts for 3 processes"):
        list(micro_batches(["a", "b"], 1, ProcessGroup(0, 3)))


def test_translator_training_is_not_divided(tmp_path: Path) -> None:
    options: dict[str, Any] = dict.fromkeys(
        ("name", "encoder", "new_pieces", "target_pieces", "decoder_layers", "max_tokens", "alignment", "steps")
    )
    stage = TranslatorTraining(pairs=[], settings=replace(SETTINGS, accumulate=2), encoder_learning_rate=1.0, **options)
    with pytest.raises(UsageError, match="reads a step's batch whole"):
        run_stage(stage, tmp_path / "out")


def test_second_run_with_a_cache_does_not_call_the_teacher(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(models, tmp_path / "plain")
    run(models, tmp_path / "first", teacher_cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    forbid_teacher(monkeypatch)
    run(models, tmp_path / "second", teacher_cache=tmp_path / "cache")
    assert history(tmp_path / "second") == history(tmp_path / "first")
    assert_vectors_close(history(tmp_path / "first"), history(tmp_path / "plain"), TRAINING)
    run(models, tmp_path / "another student", stride=2, teacher_cache=tmp_path / "cache")
    with pytest.raises(AssertionError, match="the teacher was called"):
        run(models, tmp_path / "other", replace(SETTINGS, dtype="bfloat16"), teacher_cache=tmp_path / "cache")


def test_second_epoch_with_a_cache_does_not_call_the_teacher(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, texts_read = LlmBody.embed, []

    def counting(self: LlmBody, tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> Tensor:
        texts_read.extend(texts)
        return read(self, tokenizer, texts, max_tokens=max_tokens)

    monkeypatch.setattr(LlmBody, "embed", counting)
    run(models, tmp_path / "run", steps=12, teacher_cache=tmp_path / "cache")
    assert sorted(texts_read) == sorted(TEXTS)


def test_curve_is_saved_with_the_log(models: Path, tmp_path: Path) -> None:
    run(models, tmp_path / "run")
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG\r\n")
    rates = [entry[0] for entry in history(tmp_path / "run", "learning_rate")]
    assert rates[0] == max(rates) == 1e-2
    assert rates == sorted(rates, reverse=True)


def test_two_processes_train_as_one_and_resume(models: Path, tmp_path: Path) -> None:
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "tests.train.training.resume_worker"]
    sources = ["adapt", models / "texts", "--encoder", models / "encoder", "--llm", models / "llm", "--layers", "2"]
    sizes = ["--max-tokens", "64", "--lora-rank", "2", "--lora-alpha", "4", "--lora-dropout", "0"]
    rates = ["--learning-rate", "1e-2", "--bridge-learning-rate", "1e-2", "--batch-size", "8", "--accumulate", "2"]
    course = ["--steps", "7", "--save-every", "3", "--dtype", "float32", "--device", "cpu"]
    places = ["--teacher-cache", tmp_path / "cache", "--name", "test", "--out", tmp_path / "two"]
    command = [*launch, *plain, *sources, *sizes, *rates, *course, *places]
    child = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *map(str, command)],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        timeout=600,
    )
    errors = child.stderr.decode()
    assert child.returncode == 0, errors
    assert errors.count("resuming at step 3 of 7") == 1  # only the first process logs
    run(models, tmp_path / "one", replace(SETTINGS, log_every=20), dropout=0.0)
    assert len(history(tmp_path / "two")) == 3
    assert_vectors_close(history(tmp_path / "two"), history(tmp_path / "one"), TRAINING)
    assert_vectors_close(weights(tmp_path / "two"), weights(tmp_path / "one"), TRAINING)
