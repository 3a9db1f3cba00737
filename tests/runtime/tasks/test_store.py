"""Adding tasks to a bundle on disk, and removing them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import ModelError
from mtllm_edge.tasks.head import Head
from mtllm_edge.tasks.store import add_task, remove_task
from tests.fixtures.cli_result import Run
from tests.fixtures.tiny_bundle import N_EMBD


def save_head(path: Path, rows: int = 2, width: int = N_EMBD, **arrays: np.ndarray) -> Path:
    rng = np.random.default_rng(rows)
    weight = rng.standard_normal((rows, width), dtype=np.float32)
    safetensors.numpy.save_file({"weight": weight, "bias": np.arange(rows, dtype=np.float32), **arrays}, path)
    return path


def files_of(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_list_add_and_remove(run: Run, fresh_bundle: Path, tmp_path: Path) -> None:
    before = files_of(fresh_bundle)
    save_head(tmp_path / "head.safetensors")
    listed = run("task", "list", fresh_bundle)
    assert listed.out == "topic\tscience, sports, travel\nsentiment\tnegative, neutral, positive\n"
    options = ["--label", "up, up", "--label", "down", "--kind", "pair", "--temperature", "2.5"]
    added = run("task", "add", fresh_bundle, "mood", "--head", "head.safetensors", *options)
    assert (added.code, added.out) == (0, ""), added.err
    bundle = Bundle.open(fresh_bundle)
    bundle.verify()
    task = bundle.manifest.tasks["mood"]
    assert (task.kind, task.labels, task.temperature) == ("pair", ("up, up", "down"), 2.5)
    assert safetensors.numpy.load_file(fresh_bundle / task.head)["bias"].tolist() == [0, 1]
    assert run("task", "list", fresh_bundle).out.endswith("mood\ta pair of texts: up, up, down\n")
    assert run("classify", "-b", fresh_bundle, "-t", "topic", "x").code == 0
    assert run("task", "remove", fresh_bundle, "mood").code == 0
    assert files_of(fresh_bundle) == before
    assert not (fresh_bundle / "tasks" / "mood").exists()


def test_the_last_task_can_be_removed(fresh_bundle: Path) -> None:
    for name in ("topic", "sentiment"):
        remove_task(Bundle.open(fresh_bundle), name)
    bundle = Bundle.open(fresh_bundle)
    bundle.verify()
    assert bundle.manifest.tasks == {}
    assert not (fresh_bundle / "tasks").exists() or not any((fresh_bundle / "tasks").iterdir())


def test_tasks_added_meanwhile_are_kept(fresh_bundle: Path) -> None:
    bundle = Bundle.open(fresh_bundle)
    head = Head("sequence", ("a", "b"), np.ones((2, N_EMBD), np.float32), None, 1.0)
    add_task(bundle, "one", head)
    add_task(bundle, "two", head)
    assert [*Bundle.open(fresh_bundle).manifest.tasks] == ["topic", "sentiment", "one", "two"]


def test_names_that_differ_in_case_only(fresh_bundle: Path) -> None:
    head = Head("sequence", ("a", "b"), np.ones((2, N_EMBD), np.float32), None, 1.0)
    manifest = add_task(Bundle.open(fresh_bundle), "Topic", head).manifest
    heads = [task.head.lower() for task in manifest.tasks.values()]
    assert len(set(heads)) == len(heads)
    with Classifier.load(fresh_bundle, task="topic", threads=1) as classifier:
        assert classifier.labels == ("science", "sports", "travel")


def test_a_replaced_task_loses_its_source(fresh_bundle: Path) -> None:
    bundle = Bundle.open(fresh_bundle)
    sources = (*bundle.manifest.sources, WeightSource(part="task topic", name="somebody's texts", license="CC-BY-4.0"))
    manifest = msgspec.structs.replace(bundle.manifest, sources=sources)
    (fresh_bundle / "bundle.json").write_bytes(manifest.to_json())
    head = Head("sequence", ("a", "b"), np.ones((2, N_EMBD), np.float32), None, 1.0)
    assert add_task(bundle, "other", head).manifest.sources == sources
    assert add_task(bundle, "topic", head, force=True).manifest.sources == sources[:-1]


def test_the_license_of_an_added_task(run: Run, fresh_bundle: Path, tmp_path: Path) -> None:
    before = files_of(fresh_bundle)
    sources = Bundle.open(fresh_bundle).manifest.sources
    save_head(tmp_path / "head.safetensors")
    arguments = ["--head", "head.safetensors", "--label", "a", "--label", "b"]
    refused = run("task", "add", fresh_bundle, "mood", *arguments, "--license", " ")
    assert (refused.code, "is no license" in refused.err) == (2, True)
    assert run("task", "add", fresh_bundle, "mood", *arguments, "--license", "MIT").code == 0
    source = WeightSource(part="task mood", name="head.safetensors", license="MIT")
    assert Bundle.open(fresh_bundle).manifest.sources == (*sources, source)
    assert run("task", "remove", fresh_bundle, "mood").code == 0
    assert files_of(fresh_bundle) == before
    assert run("task", "add", fresh_bundle, "mood", *arguments).code == 0
    assert Bundle.open(fresh_bundle).manifest.sources == sources


def test_a_head_of_another_width(fresh_bundle: Path) -> None:
    head = Head("sequence", ("a", "b"), np.ones((2, 7), np.float32), np.ones(2, np.float32), 1.0)
    before = files_of(fresh_bundle)
    with pytest.raises(ModelError, match=r"has weight \[2, 7\] and bias \[2\], expected \[2, 32\] and \[2\] or none"):
        add_task(Bundle.open(fresh_bundle), "other", head)
    assert files_of(fresh_bundle) == before


BAD_HEADS: dict[str, tuple[Callable[[Path], object], list[str], int, str]] = {
    "no file": (lambda path: None, [], 2, "head.safetensors is no file"),
    "no safetensors": (lambda path: path.write_bytes(b"x" * 100), [], 1, "head.safetensors: "),
    "more in it": (
        lambda path: save_head(path, x=np.ones(1, np.float32)),
        [],
        1,
        "expected weight and an optional bias",
    ),
    "not finite": (
        lambda path: safetensors.numpy.save_file({"weight": np.full((2, N_EMBD), np.nan, np.float32)}, path),
        [],
        1,
        "not finite",
    ),
    "rows": (lambda path: save_head(path, 3), [], 1, "expected [2, 32]"),
    "one label twice": (save_head, ["--label", "a"], 2, "needs two or more different labels"),
    "a blank label": (save_head, ["--label", " "], 2, "a label is ' ', expected a word"),
    "a label of two lines": (save_head, ["--label", "c\nd"], 2, "a label is 'c\\nd', expected a word"),
    "labels of choices": (save_head, ["--kind", "multiple_choice"], 2, "takes no labels, found ['a', 'b']"),
    "temperature": (save_head, ["--temperature", "0"], 2, "has temperature 0.0, expected"),
    "temperature is no number": (save_head, ["--temperature", "nan"], 2, "has temperature nan, expected"),
    "name taken": (save_head, [], 2, "has a task 'topic' already"),
}


@pytest.mark.parametrize(("make", "options", "code", "message"), BAD_HEADS.values(), ids=BAD_HEADS)
def test_refused_heads(
    run: Run,
    fresh_bundle: Path,
    make: Callable[[Path], object],
    options: list[str],
    code: int,
    message: str,
) -> None:
    make(Path("head.safetensors"))
    before = files_of(fresh_bundle)
    name = "topic" if "already" in message else "mood"
    arguments = ["--head", "head.safetensors", "--label", "a", "--label", "b", *options]
    result = run("task", "add", fresh_bundle, name, *arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert files_of(fresh_bundle) == before


def test_removing_an_unknown_task(run: Run, fresh_bundle: Path) -> None:
    result = run("task", "remove", fresh_bundle, "mood")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "has no task 'mood'; it has topic, sentiment" in result.err


@pytest.mark.parametrize("command", [["fit", "-t", "mood"], ["calibrate", "-t", "sentiment"]])
def test_missing_permission_is_detected_before_the_work(
    run: Run, fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    Path("in.csv").write_text("text,label\n" + "".join(f"{n} text,{('neg', 'pos')[n % 2]}\n" for n in range(20)))
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (fresh_bundle, os.W_OK))
    monkeypatch.setattr(Embedder, "load", None)
    result = run(*command, fresh_bundle, "in.csv")
    assert (result.code, result.err) == (
        2,
        f"error: {fresh_bundle} cannot be written to; copy that folder, and change the copy\n",
    )


def test_a_full_disk_is_one_line(run: Run, fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = files_of(fresh_bundle)
    monkeypatch.setattr(os, "fsync", fail)
    result = run("task", "remove", fresh_bundle, "topic")
    assert (result.code, result.err) == (1, f"error: {fresh_bundle / 'bundle.json'}: No space left on device\n")
    assert files_of(fresh_bundle) == before
