"""Soft labels: geometric mean of both teachers, KL divergence, class-balanced weights, and rows of other tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtllm_edge.errors import UsageError
from mtllm_edge_train.checkpoints.config import StackConfig
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.encoder_only import EncoderOnly
from mtllm_edge_train.models.loading import load_heads
from mtllm_edge_train.multilingual.soft_labels import SoftLabels, check_tasks, class_balanced_weights
from mtllm_edge_train.training.settings import LoopSettings
from tests.fixtures.tiny_checkpoint import save_checkpoint

LABELS = ("negative", "neutral", "positive")
WORDS = {"positive": "good", "negative": "bad", "neutral": "so-so"}
ROWS = [(f"{word} {thing}", label) for label, word in WORDS.items() for thing in ("film", "food", "song", "day", "bed")]
DATA = LabeledTexts([text for text, _ in ROWS], [label for _, label in ROWS])
SETTINGS = LoopSettings(batch_size=4, learning_rate=1e-3, dtype="float32")
TEXTS = ["good bread", "bad bread", "so-so"]
SAMPLE = ["so-so bread", "so-so wine", "so-so water", "good wine"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("start") / "checkpoint")


def llm_heads(start: Path) -> nn.ModuleDict:
    heads: nn.ModuleDict = load_heads(start, StackConfig.load(start), width=64)
    return heads


@pytest.fixture(scope="module")
def soft(start: Path) -> SoftLabels:
    tasks, sample_ND = StackConfig.load(start).tasks, vectors(1, len(SAMPLE))
    return SoftLabels({"sentiment": DATA}, tasks, llm_heads(start), start, SETTINGS, SAMPLE, sample_ND)


def vectors(seed: int, count: int = len(TEXTS)) -> Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)) / 8


def test_soft_label_is_the_geometric_mean_of_both_teachers(start: Path, soft: SoftLabels) -> None:
    vectors_ND, encoder = vectors(0), EncoderOnly.from_checkpoint(start, device="cpu")
    with torch.no_grad():
        llm_NC = torch.softmax(llm_heads(start)["sentiment"](vectors_ND), 1)
        encoder_NC = torch.softmax(encoder.classifier(DATA, LABELS)(encoder(TEXTS)), 1)
    product_NC = (llm_NC * encoder_NC).sqrt()
    assert (llm_NC - encoder_NC).abs().max() > 0.1  # otherwise one teacher would be enough
    found = soft(TEXTS, vectors_ND)
    assert [*found] == ["sentiment"]  # the other task of the LLM has no labeled rows
    torch.testing.assert_close(found["sentiment"].exp(), product_NC / product_NC.sum(1, keepdim=True))


def test_divergence_is_zero_only_at_the_soft_labels(soft: SoftLabels) -> None:
    vectors_ND = vectors(0)
    logits_NC = soft(TEXTS, vectors_ND)["sentiment"].clone().requires_grad_()
    same, metrics = soft.divergence(nn.ModuleDict({"sentiment": nn.Identity()}), logits_NC, TEXTS, vectors_ND)
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert metrics == {"kl_sentiment": pytest.approx(0, abs=1e-6)}
    soft_NC = logits_NC.detach().exp()
    other, _ = soft.divergence(nn.ModuleDict({"sentiment": nn.Identity()}), 0 * logits_NC, TEXTS, vectors_ND)
    by_hand_N = (soft_NC * (soft_NC * 3).log()).sum(1)  # from the uniform distribution
    prior_C = soft(SAMPLE, vectors(1, len(SAMPLE)))["sentiment"].exp().mean(0)
    weight_N = (soft_NC / prior_C).mean(1)
    assert weight_N.max() < 5
    by_hand = (weight_N * by_hand_N).mean()
    assert by_hand.item() != pytest.approx(
        by_hand_N.mean().item(), rel=0.01
    )  # otherwise the weights would have no effect
    assert other.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert other.item() > 0.01


def test_class_balanced_weights() -> None:
    prior_C = torch.tensor([0.6, 0.2, 0.2])
    soft_NC = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]])
    by_hand_N = torch.tensor([(4 / 3 + 1 / 2 + 1 / 2) / 3, (1 / 6 + 1 / 2 + 4) / 3, 1.0])
    torch.testing.assert_close(class_balanced_weights(soft_NC.log(), prior_C.log()), by_hand_N)
    average = class_balanced_weights(soft_NC.log(), soft_NC.mean(0).log())
    assert average.mean().item() == pytest.approx(1)
    rare_C = torch.tensor([0.96, 0.02, 0.02])
    assert class_balanced_weights(soft_NC.log(), rare_C.log())[1] == 5  # the limit, not 15


def test_rows_of_other_tasks(start: Path) -> None:
    tasks = StackConfig.load(start).tasks
    check_tasks({"sentiment": DATA}, tasks, start)
    pairs = LabeledTexts(DATA.texts, DATA.labels, seconds=DATA.texts)
    for labeled, message in (
        ({"mood": DATA}, "has no task 'mood'; its tasks: topic, sentiment"),
        ({"topic": DATA}, "'topic' has the labels .* but negative, neutral, positive in the labeled rows; give"),
        ({"sentiment": LabeledTexts(DATA.texts[:5], DATA.labels[:5])}, "but positive in the labeled rows"),
        ({"sentiment": pairs}, "is not about single texts"),
    ):
        with pytest.raises(UsageError, match=message):
            check_tasks(labeled, tasks, start)
