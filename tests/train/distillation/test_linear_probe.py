"""Linear probe: its optimum, and the choice of the penalty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtllm_edge_train.distillation.linear_probe import choose_penalty, logistic_regression
from mtllm_edge_train.distillation.losses import Standardizer


def blobs(rows: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    """Three classes that differ in the first two dimensions; the others are noise."""
    generator = torch.Generator().manual_seed(1)
    gold_N = torch.randint(3, (rows,), generator=generator)
    vectors_ND = torch.randn(rows, width, generator=generator) * noise + 5
    vectors_ND[:, :2] += torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])[gold_N]
    return vectors_ND, gold_N


@pytest.mark.parametrize("penalty", [0.05, 5.0])
def test_gradient_is_zero_at_the_optimum(penalty: float) -> None:
    vectors_ND, gold_N = blobs(80, 6, 1.0)
    scale = Standardizer.fit(vectors_ND)
    head = logistic_regression(vectors_ND, gold_N, 3, scale=scale, penalty=penalty)
    loss = nn.functional.cross_entropy(head(vectors_ND), gold_N, reduction="sum")
    loss = loss + penalty * (head.weight * scale.std).square().sum()
    gradient, _ = torch.autograd.grad(loss, [head.weight, head.bias])
    assert gradient.abs().max() < 0.05


def test_chosen_penalty_is_the_best_on_held_out_rows() -> None:
    vectors_ND, gold_N = blobs(60, 80, 1.0)
    test_ND, test_N = vectors_ND[30:], gold_N[30:]
    vectors_ND, gold_N = vectors_ND[:30], gold_N[:30]
    scale = Standardizer(vectors_ND.mean(0), torch.ones(80))
    penalties = (1e-4, 1.0, 1e4)

    def loss(penalty: float) -> float:
        head = logistic_regression(vectors_ND, gold_N, 3, scale=scale, penalty=penalty)
        return nn.functional.cross_entropy(head(test_ND), test_N).item()

    chosen = choose_penalty(vectors_ND, gold_N, 3, scale=scale, penalties=penalties)
    assert chosen == min(penalties, key=loss) == 1.0


def test_chosen_penalty_for_multiple_choice() -> None:
    """Three choices per text; mostly that with the largest first dimension is correct."""
    generator = torch.Generator().manual_seed(2)
    vectors_VD = torch.randn(360, 20, generator=generator)
    scores_NC = vectors_VD[:, 0].reshape(120, 3) + torch.randn(120, 3, generator=generator) * 0.3
    train_VD, test_VD, train_N, test_N = (*vectors_VD.split(180), *scores_NC.argmax(1).split(60))
    scale = Standardizer.fit(train_VD)
    penalties = (1e-4, 1.0, 1e4)

    def loss(penalty: float) -> float:
        head = logistic_regression(train_VD, train_N, 1, scale=scale, penalty=penalty)
        return nn.functional.cross_entropy(head(test_VD).reshape(60, 3), test_N).item()

    assert choose_penalty(train_VD, train_N, 1, scale=scale, penalties=penalties) == min(penalties, key=loss) == 1.0
