"""Distillation from translations: what is learned, what stays, another stride, resuming, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtllm_edge.errors import UsageError
from mtllm_edge_train import loop
from mtllm_edge_train.adapt import adapt
from mtllm_edge_train.checkpoint import load_stack, read_bridge, read_head, read_lora
from mtllm_edge_train.config import EncoderConfig, StackConfig
from mtllm_edge_train.finetune import finetune
from mtllm_edge_train.model import pad_right
from mtllm_edge_train.multilingual import distill_translations
from mtllm_edge_train.parallel import Pair
from tests.export.tiny_checkpoint import save_encoder
from tests.train.test_stages import DATA, LLM, LORA, SETTINGS, TEXTS, Killed

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


PAIRS = [Pair("deu_Latn", german(text), text) for text in TEXTS] + [Pair("eng_Latn", text, text, 0.2) for text in TEXTS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `start` and a `teacher`."""
    folder = tmp_path_factory.mktemp("runs")
    save_encoder(folder / "encoder", "bert")
    encoder = EncoderConfig(source=str(folder / "encoder"), max_tokens=64)
    options: Any = {"llm": LLM, "lora": LORA, "settings": SETTINGS}
    adapt(TEXTS, folder / "start", name="s", encoder=encoder, steps=3, bridge_learning_rate=2e-3, **options)
    finetune({"tone": DATA}, folder / "teacher", name="t", epochs=1, **options)
    return folder


def run(runs: Path, out: Path, settings: loop.LoopSettings = SETTINGS, *, steps: int = 6, **options: Any) -> None:
    chosen: dict[str, Any] = {"pairs": PAIRS, "start": runs / "start", "teacher": runs / "teacher", **options}
    distill_translations(
        out=out, name="m", max_tokens=64, steps=steps, settings=settings, bridge_learning_rate=1e-2, **chosen
    )


def fvu(folder: Path) -> list[float]:
    return [float(line.split('"fvu": ')[1].split(",")[0]) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stride", [1, 3])
def test_the_student_of_a_foreign_text_nears_the_teacher_of_the_english_one(
    runs: Path, tmp_path: Path, stride: int
) -> None:
    run(runs, tmp_path / "m", replace(SETTINGS, batch_size=9, learning_rate=1e-2), steps=50, stride=stride)
    found = fvu(tmp_path / "m")
    assert np.mean(found[-5:]) < 0.7 * found[0]
    assert StackConfig.load(tmp_path / "m").bridge.stride == stride
    np.testing.assert_array_equal(read_head(tmp_path / "m", "tone")[0], read_head(runs / "teacher", "tone")[0])


def test_a_larger_stride_starts_with_the_mean_of_what_the_linear_bridge_makes(runs: Path, tmp_path: Path) -> None:
    run(runs, tmp_path / "m", replace(SETTINGS, learning_rate=0.0, warmup=1.0), steps=1, stride=2)
    weight, _ = read_bridge(runs / "start")
    spread, _ = read_bridge(tmp_path / "m")
    # the one step moves the bridge by at most its learning rate
    np.testing.assert_allclose(spread, np.concatenate([weight, weight], 1) / 2, atol=1.1e-2)
    for name, tensor in read_lora(runs / "start").items():
        np.testing.assert_array_equal(read_lora(tmp_path / "m")[name], tensor)


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(runs, tmp_path / "whole")
    save = loop._save

    def save_and_die(*arguments: Any, **named: Any) -> None:
        save(*arguments, **named)
        raise Killed

    monkeypatch.setattr(loop, "_save", save_and_die)
    with pytest.raises(Killed):
        run(runs, tmp_path / "run")
    monkeypatch.undo()
    run(runs, tmp_path / "run")
    assert fvu(tmp_path / "run") == pytest.approx(fvu(tmp_path / "whole"), rel=1e-5)
    stacks = [load_stack(tmp_path / name) for name in ("whole", "run")]
    ids_NL, mask_NL = pad_right(stacks[0].tokenizer.encode([PAIRS[0].text]))
    with torch.no_grad():
        torch.testing.assert_close(stacks[0](ids_NL, mask_NL), stacks[1](ids_NL, mask_NL))


def test_what_does_not_belong_together_is_refused(runs: Path, tmp_path: Path) -> None:
    run(runs, tmp_path / "two", steps=1, stride=2)
    for options, message in (
        ({"pairs": []}, "needs sentence pairs"),
        ({"start": runs / "teacher"}, "has no encoder"),
        ({"start": tmp_path / "two", "stride": 3}, "stride 2, which stride 3 cannot start from"),
    ):
        with pytest.raises(UsageError, match=message):
            run(runs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
