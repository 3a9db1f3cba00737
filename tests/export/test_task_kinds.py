"""Pairs and choices: the bundle says what torch says, one by one or together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.inputs import Input
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_train.checkpoints.config import TaskConfig
from mtllm_edge_train.models.loading import load_stack
from mtllm_edge_train.models.stack import Stack
from tests.fixtures.run_gguf import cosines
from tests.fixtures.tiny_checkpoint import save_checkpoint
from tests.fixtures.tolerances import ENGINES, assert_probabilities_close

TASKS = {
    "entailment": TaskConfig(kind="pair", labels=("no", "yes")),
    "cause": TaskConfig(kind="multiple_choice", labels=()),
}
PAIRS: list[Input] = [
    ("Good morning.", "It is early."),
    ("おはよう", "朝"),
    ("x", "один два три " * 30),
    ("a " * 90, "b"),
]
QUESTIONS: list[Input] = [
    ("The glass fell.", ["It broke.", "It sang."]),
    ("x", ["காலை", "வணக்கம்", "y"]),
    ("один два три " * 30, ["да", "нет", "может быть", "а"]),
]


@pytest.fixture(scope="module", params=[("bert", 1), ("bert", 3), ("m2m_100", 2)], ids=str)
def pieces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Path, str | None]:
    """The torch stack, the float bundle, and the language that they must be told."""
    folder = tmp_path_factory.mktemp("kinds")
    family, stride = request.param
    nllb = family == "m2m_100"
    checkpoint = save_checkpoint(
        folder / "checkpoint",
        family=family,
        attention="bidirectional" if nllb else "causal",
        stride=stride,
        more_tasks=TASKS,
    )
    export_bundle(checkpoint, folder / "bundle", encoder_quantization="float32", llm_quantization="f32")
    return load_stack(checkpoint), folder / "bundle", "deu_Latn" if nllb else None


def torch_probabilities(stack: Stack, task: str, items: list[Input], language: str | None) -> list[list[float]]:
    """Of one padded batch."""
    encoded = stack.tokenizer.encode(items, language=language)
    with torch.inference_mode():
        logits_VC = stack.heads[task](stack.embed(encoded))
    rows = torch.split(logits_VC, [text.vector_count for text in encoded])
    return [torch.softmax(row.reshape(-1), dim=0).tolist() for row in rows]


@pytest.mark.parametrize(
    ("task", "items", "truncated"),
    [("entailment", PAIRS, [False, False, True, True]), ("cause", QUESTIONS, [False, False, True])],
)
def test_probabilities_are_those_of_torch(
    pieces: tuple[Stack, Path, str | None], task: str, items: list[Input], truncated: list[bool]
) -> None:
    stack, bundle, language = pieces
    expected = torch_probabilities(stack, task, items, language)
    with Classifier.load(bundle, task=task, threads=1) as classifier:
        together = classifier.classify(items, language=language)
        alone = [classifier.classify([item], language=language)[0] for item in items]
    for predictions in (together, alone):
        for prediction, probabilities in zip(predictions, expected, strict=True):
            assert_probabilities_close([*prediction.probabilities.values()], probabilities, ENGINES)
    assert [prediction.truncated for prediction in together] == truncated
    assert max(max(prediction.probabilities.values()) for prediction in together) > 0.6  # else any would do


@pytest.mark.parametrize("items", [PAIRS, QUESTIONS], ids=["pairs", "choices"])
def test_vectors_are_those_of_torch(pieces: tuple[Stack, Path, str | None], items: list[Input]) -> None:
    stack, bundle, language = pieces
    with torch.inference_mode():
        expected_VD = stack.embed(stack.tokenizer.encode(items, language=language)).numpy()
    with Embedder.load(bundle, threads=1) as embedder:
        found_VD = embedder.pool(embedder.encode(items, language=language))
    assert cosines(expected_VD, found_VD).min() >= 0.9999


def test_the_manifest_has_the_comparison_of_every_kind(pieces: tuple[Stack, Path, str | None]) -> None:
    manifest = Bundle.open(pieces[1]).manifest
    assert {name: task.kind for name, task in manifest.tasks.items()} == {
        "topic": "sequence",
        "sentiment": "sequence",
        "entailment": "pair",
        "cause": "multiple_choice",
    }
    cosine = {row.component: row.cosine_min for row in manifest.parity}
    assert set(cosine) >= {"stack", "stack, pair", "stack, multiple_choice", "task entailment", "task cause"}
    assert min(cosine.values()) >= 0.9999
