"""Standardization and distillation loss, compared with their definitions."""

from __future__ import annotations

import torch

from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.training.gradient_accumulation import mean_metrics


def test_standardized_vectors_have_zero_mean_and_unit_deviation() -> None:
    torch.manual_seed(0)
    vectors_ND = torch.randn(500, 6) * torch.tensor([1, 2, 3, 100, 1000, 0.5]) + 7
    standardized_ND = Standardizer.fit(vectors_ND)(vectors_ND)
    torch.testing.assert_close(standardized_ND.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardized_ND.std(0), torch.ones(6), atol=5e-3, rtol=0)


def test_losses_by_hand() -> None:
    teacher_ND = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    scale = Standardizer(mean=torch.tensor([2.0, 20.0]), std=torch.tensor([1.0, 10.0]))
    loss, metrics = distillation_loss(teacher_ND, teacher_ND, scale)
    assert (loss.item(), metrics["mse"], metrics["variance"]) == (0, 0, 1)
    student_ND = torch.tensor([[2.0, 20.0], [2.0, 20.0]], requires_grad=True)  # the mean
    loss, metrics = distillation_loss(student_ND, teacher_ND, scale)
    assert loss.item() == metrics["error"] == metrics["variance"] == 1  # the FVU of the mean is 1
    assert metrics["mse"] == (1 + 100) / 2
    loss.backward()
    assert student_ND.grad is not None
    torch.testing.assert_close(student_ND.grad, torch.tensor([[0.5, 0.05], [-0.5, -0.05]]))


def test_fvu_is_a_ratio_of_means_and_undefined_for_equal_vectors() -> None:
    entries = [{"loss": 7.0, "error": 1.0, "variance": 1.0}, {"loss": 9.0, "error": 2.0, "variance": 5.0}]
    assert mean_metrics(entries) == {"loss": 8.0, "fvu": 0.5}  # the loss may hold more than the vectors' error
    assert mean_metrics([{"loss": 1.0, "error": 1.0, "variance": 0.0}]) == {"loss": 1.0}
    assert mean_metrics([{"loss": 1.0, "accuracy": 0.5}]) == {"loss": 1.0, "accuracy": 0.5}
