"""The sizes of the reference recipe, from its command line to the stages. Nothing is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.multilingual.pairs import SentencePair
from mtllm_edge_train.recipes.reference import __main__ as command
from mtllm_edge_train.recipes.reference import stages
from tests.fixtures.subprocesses import imported_by


def steps_and_batches(
    monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str
) -> dict[str, tuple[int | None, int, str]]:
    """Stage -> steps (None where it counts epochs), batch size and device, as passed to `run_stage`."""
    recorded: dict[str, tuple[int | None, int, str]] = {}

    def record(stage: Any, _: Path) -> None:
        recorded[stage.kind] = (getattr(stage, "steps", None), stage.settings.batch_size, stage.settings.device)

    monkeypatch.setattr(stages, "run_stage", record)
    tokenizer = SimpleNamespace(from_file=lambda _: Tokenizer(BPE()))
    monkeypatch.setattr(stages, "tokenizers", SimpleNamespace(Tokenizer=tokenizer))
    monkeypatch.setattr(stages, "make", lambda *_: None)
    monkeypatch.setattr(stages, "load_split", lambda *_: {stages.ENGLISH: LabeledTexts(["a", "b"], ["x", "y"])})
    monkeypatch.setattr(stages, "english_sides", lambda *_, **__: ["some text"])
    pair = SentencePair(stages.ENGLISH, "a", "b", 1.0)
    monkeypatch.setattr(stages, "translation_pairs", lambda *_, **__: [pair])
    monkeypatch.setattr(sys, "argv", ["reference", "data", str(out), *arguments])
    command.main()
    return recorded


def test_the_default_is_the_cpu_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_and_batches(monkeypatch, tmp_path) == {
        "translation": (2600, 96, "cpu"),
        "finetune": (None, 32, "cpu"),
        "adapt": (1600, 32, "cpu"),
        "distill": (None, 32, "cpu"),
        "multilingual": (1100, 48, "cpu"),
    }


def test_the_gpu_size_and_custom_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    custom = ["--size", "gpu", "--device", "cpu", "--steps", "7"]
    recorded = steps_and_batches(monkeypatch, tmp_path, *custom)
    assert recorded["translation"] == (30_000, 512, "cpu")
    assert recorded["adapt"] == (7, 128, "cpu")
    assert recorded["multilingual"] == (8_000, 256, "cpu")
    recorded = steps_and_batches(
        monkeypatch, tmp_path, *custom, "--translation-steps", "5", "--multilingual-steps", "6"
    )
    assert (recorded["translation"][0], recorded["multilingual"][0]) == (5, 6)


def test_help_shows_every_size_and_needs_no_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "torch" not in imported_by("mtllm_edge_train.recipes.reference.__main__")
    monkeypatch.setattr(sys, "argv", ["reference", "--help"])
    with pytest.raises(SystemExit, match="0"):
        command.main()
    shown = capsys.readouterr().out
    assert "has not been tried on a GPU" in shown
    for size in command.SIZES.values():
        for stage in (size.translation, size.adaptation, size.languages):
            assert f"{stage.steps:,} x {stage.batch_size}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: '0' is no number of steps; give 1 or more"),
        (["--size", "tpu"], "argument --size: invalid choice: 'tpu'"),
    ],
)
def test_bad_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["reference", "data", "out", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert message in capsys.readouterr().err
