"""Standardised targets and the losses on them, against their definitions."""

from __future__ import annotations

import torch

from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.training.gradient_accumulation import means_of


def test_standardised_vectors_have_no_mean_and_unit_deviation() -> None:
    torch.manual_seed(0)
    vectors_ND = torch.randn(500, 6) * torch.tensor([1, 2, 3, 100, 1000, 0.5]) + 7
    standardised_ND = Standardizer.fit(vectors_ND)(vectors_ND)
    torch.testing.assert_close(standardised_ND.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised_ND.std(0), torch.ones(6), atol=5e-3, rtol=0)


def test_losses_by_hand() -> None:
    teacher_ND = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    scale = Standardizer(mean=torch.tensor([2.0, 20.0]), deviation=torch.tensor([1.0, 10.0]))
    loss, figures = distillation_loss(teacher_ND, teacher_ND, scale)
    assert (loss.item(), figures["mse"], figures["variance"]) == (0, 0, 1)
    student_ND = torch.tensor([[2.0, 20.0], [2.0, 20.0]], requires_grad=True)  # the mean
    loss, figures = distillation_loss(student_ND, teacher_ND, scale)
    assert loss.item() == figures["error"] == figures["variance"] == 1  # the FVU of the mean is 1
    assert figures["mse"] == (1 + 100) / 2
    loss.backward()
    assert student_ND.grad is not None
    torch.testing.assert_close(student_ND.grad, torch.tensor([[0.5, 0.05], [-0.5, -0.05]]))


def test_the_fvu_is_a_ratio_of_means_and_that_of_equal_vectors_is_none() -> None:
    entries = [{"loss": 7.0, "error": 1.0, "variance": 1.0}, {"loss": 9.0, "error": 2.0, "variance": 5.0}]
    assert means_of(entries) == {"loss": 8.0, "fvu": 0.5}  # the loss may hold more than the vectors' error
    assert means_of([{"loss": 1.0, "error": 1.0, "variance": 0.0}]) == {"loss": 1.0}
    assert means_of([{"loss": 1.0, "accuracy": 0.5}]) == {"loss": 1.0, "accuracy": 0.5}
