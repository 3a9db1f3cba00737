"""The LLM in ONNX against the same body in torch, in float32 and in int8."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from mtllm_edge import Bundle, Embedder
from mtllm_edge.backends.llms.onnx import OnnxLlm
from mtllm_edge.bundle.formats.onnx import read_graph
from mtllm_edge.bundle.manifest import LlmSpec, OnnxQuantization
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.inputs import Input
from mtllm_edge_export import cli
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_export.llms import onnx
from mtllm_edge_export.llms.body import Attention, LlmBody, LlmSummary
from mtllm_edge_export.llms.onnx import write_llm_onnx
from mtllm_edge_export.quantization import onnx as quantization
from mtllm_edge_train.checkpoints.llm_weights import LlmWeights, open_llm_weights
from mtllm_edge_train.models.loading import load_stack
from tests.export.llms.test_gguf import LAYERS, LLAMA3, WIDTH, sequences, torch_pooled
from tests.export.test_task_kinds import PAIRS, QUESTIONS, TASKS
from tests.fixtures.run_gguf import cosines
from tests.fixtures.tiny_checkpoint import random_lora, save_checkpoint, save_llm
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close

OUTLIER = "layers.1.mlp.down_proj"


class Outlier:
    """An LLM in which one matrix reads a huge activation, and which computes what the LLM without it does."""

    def __init__(self, weights: LlmWeights) -> None:
        self._weights, self.config = weights, weights.config

    def tensor(self, name: str) -> NDArray[np.float32]:
        weight = self._weights.tensor(name).copy()
        if name == "layers.1.mlp.up_proj.weight":
            weight[5] *= 4096
        if name == f"{OUTLIER}.weight":
            weight[:, 5] /= 4096
        return weight


def pool(path: Path, summary: LlmSummary, quantization: OnnxQuantization, *, singly: bool) -> NDArray[np.float32]:
    described = LlmSpec(
        backend="onnx",
        architecture=summary.architecture,
        n_embd=summary.n_embd,
        n_layer=summary.n_layer,
        quantization=quantization,
        float32_matrices=summary.float32_matrices,
        attention="causal",
        pooling="mean",
    )
    llm = OnnxLlm(path, described, threads=1)
    return np.concatenate([llm.pool([one]) for one in sequences()]) if singly else llm.pool(sequences())


@pytest.mark.parametrize(("attention", "rope"), [("causal", None), ("bidirectional", LLAMA3)])
def test_float32_is_torch(attention: Attention, rope: dict[str, Any] | None, tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=WIDTH, rope=rope)
    expected_ND = torch_pooled(tmp_path, attention, adapted=True)
    body = LlmBody(open_llm_weights(tmp_path / "llm"), LAYERS, attention, random_lora(WIDTH, LAYERS), 2.0)
    summary = write_llm_onnx(tmp_path / "llm.onnx", body, "f32", [])
    assert summary == LlmSummary("llama", WIDTH, LAYERS, {"f32": 14})
    for singly in (False, True):
        found_ND = pool(tmp_path / "llm.onnx", summary, "f32", singly=singly)
        assert_vectors_close(found_ND, expected_ND, FLOAT32)
    content = (tmp_path / "llm.onnx").read_bytes()
    for folder in (Path(cli.__file__).parent, Path(torch.__file__).parent):
        assert str(folder).encode() not in content  # torch notes where each node came from


def test_a_matrix_that_int8_ruins_stays_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llm(tmp_path / "llm", width=WIDTH)
    body = LlmBody(Outlier(open_llm_weights(tmp_path / "llm")), LAYERS, "causal")
    expected_ND = torch_pooled(tmp_path, "causal", adapted=False)
    summary = write_llm_onnx(tmp_path / "llm.onnx", body, "int8", sequences())
    kept, gate = summary.float32_matrices, onnx.GATE_COSINE_MIN
    assert OUTLIER in kept
    assert 1 <= len(kept) <= 3  # so narrow an LLM may need one or two more
    assert summary.matrix_types == {"int8": 14 - len(kept), "f32": len(kept)}
    stored = read_graph(tmp_path / "llm.onnx").initializers
    assert {name.removesuffix(".weight") for name in stored if name.endswith("_proj.weight")} == set(kept)
    for singly in (False, True):
        found = cosines(expected_ND, pool(tmp_path / "llm.onnx", summary, "int8", singly=singly))
        assert found.min() >= gate
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["llm.onnx"]
    monkeypatch.setattr(onnx, "GATE_COSINE_MEAN", -1.0)
    monkeypatch.setattr(onnx, "GATE_COSINE_MIN", -1.0)
    ruined = write_llm_onnx(tmp_path / "ruined.onnx", body, "int8", sequences())
    assert ruined.float32_matrices == ()
    found = cosines(expected_ND, pool(tmp_path / "ruined.onnx", ruined, "int8", singly=False))
    assert found.min() < gate  # what the gate is there for
    assert (tmp_path / "ruined.onnx").stat().st_size < (tmp_path / "llm.onnx").stat().st_size


def test_few_trials_find_the_matrix_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llm(tmp_path / "llm", width=WIDTH)
    body = LlmBody(Outlier(open_llm_weights(tmp_path / "llm")), LAYERS, "causal")
    monkeypatch.setattr(quantization, "_TRIALS", 4)  # of 14 matrices, two divisions leave groups of 3 or 4
    kept = write_llm_onnx(tmp_path / "llm.onnx", body, "int8", sequences()).float32_matrices
    assert OUTLIER in kept
    assert len(kept) <= 7


def test_a_large_llm_is_sent_to_gguf(tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=WIDTH)
    weights = open_llm_weights(tmp_path / "llm")
    weights.config = {**weights.config, "intermediate_size": 2**22}
    with pytest.raises(ModelError, match=r"has 6\.4 GB in float32.*; export with --llm-backend gguf"):
        write_llm_onnx(tmp_path / "llm.onnx", LlmBody(weights, 2, "causal"), "f32", [])


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with a strided bridge and tasks of every kind, and its bundle."""
    folder = tmp_path_factory.mktemp("onnx")
    checkpoint = save_checkpoint(folder / "checkpoint", stride=3, more_tasks=TASKS)
    lines: list[str] = []
    export_bundle(
        checkpoint,
        folder / "bundle",
        encoder_quantization="float32",
        llm_backend="onnx",
        llm_quantization="f32",
        log=lines.append,
    )
    assert "matrices of the LLM: 14 f32" in lines
    return checkpoint, folder / "bundle"


def test_the_bundle_follows_torch_in_every_kind(pieces: tuple[Path, Path]) -> None:
    checkpoint, folder = pieces
    bundle = Bundle.open(folder)
    bundle.verify()
    assert (bundle.manifest.llm.backend, bundle.manifest.llm.quantization) == ("onnx", "f32")
    assert "llm.gguf" not in bundle.manifest.files
    cosine = {row.component: row.cosine_min for row in bundle.manifest.parity}
    assert set(cosine) >= {"llm", "stack", "stack, pair", "stack, multiple_choice", "task entailment", "task cause"}
    assert min(cosine.values()) >= 0.9999
    stack = load_stack(checkpoint)
    kinds: list[list[Input]] = [["x", "Good morning.", "один два три " * 30], PAIRS, QUESTIONS]
    with Embedder.load(bundle, threads=1) as embedder:
        for items in kinds:
            with torch.inference_mode():
                expected_VD = stack.embed(stack.tokenizer.encode(items)).numpy()
            assert cosines(expected_VD, embedder.pool(embedder.encode(items))).min() >= 0.9999


def test_a_damaged_file_is_refused(pieces: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pieces[1], tmp_path / "bundle"))
    content = (folder / "llm.onnx").read_bytes()
    (folder / "llm.onnx").write_bytes(b"\xff" * 64 + content[64:])
    with pytest.raises(ModelError, match=r"llm\.onnx: "):
        Bundle.open(folder)


@pytest.mark.parametrize("joined", [False, True])
def test_both_forms_in_one_bundle(joined: bool, checkpoint: Path, tmp_path: Path) -> None:
    export = [cli.export, str(checkpoint), "--encoder-quantization", "float32", "--out"]
    join = [cli.join, str(tmp_path / "parts"), "--out"]
    steps: list[list[Any]] = [[*export, str(tmp_path / "bundle"), "--llm-backend", "both"]]
    if joined:
        steps = [
            [*export, str(tmp_path / "parts"), "--without-llm"],
            [*join, str(tmp_path / "bundle"), "--llm-backend", "both"],
        ]
    for command, *arguments in steps:
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    bundle = Bundle.open(tmp_path / "bundle")
    bundle.verify()
    gguf, onnx = bundle.manifest.llms
    assert (gguf.backend, gguf.quantization, onnx.backend, onnx.quantization) == ("gguf", "q8_0", "onnx", "int8")
    compared = {row.component: row.cosine_mean for row in bundle.manifest.parity}
    assert compared["stack, onnx against gguf" if joined else "stack, onnx"] >= 0.99
    texts = ["Good morning.", "один два три", "x " * 40]
    vectors = []
    for backend in ("gguf", "onnx"):
        with Embedder.load(bundle, threads=1, llm_backend=backend) as embedder:
            vectors.append(np.concatenate([embedder.embed([text]) for text in texts]))
    assert cosines(*vectors).min() >= 0.98
    assert cosines(*vectors).max() < 1  # they are two models


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--llm-backend", "onnx", "--llm-quantization", "q8_0"], "an LLM in onnx cannot be q8_0; choose one of f32"),
        (["--llm-quantization", "int8"], "an LLM in gguf cannot be int8"),
        (["--llm-quantization", "int8", "--without-llm"], "an LLM in gguf cannot be int8"),
        (
            ["--llm-backend", "onnx", "--without-llm"],
            "exclude each other: join has this option",
        ),
    ],
)
def test_forms_that_there_are_not(options: list[str], message: str, checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.export, [str(checkpoint), "--out", str(tmp_path / "b"), *options])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []
