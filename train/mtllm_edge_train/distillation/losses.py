"""Distillation loss: the MSE between standardized vectors of student and teacher.

A few dimensions of an LLM's states are far larger than the rest and would dominate a plain MSE, so vectors are
standardized per dimension with the teacher's mean and standard deviation. The MSE is then the fraction of variance
unexplained (FVU) averaged over the dimensions: 1 for predicting the mean, 0 for perfect predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardizer:
    """Mean and standard deviation of the teacher's vectors per dimension, both (D,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, vectors_ND: Tensor) -> Standardizer:
        """Estimate both from a sample of vectors."""
        return cls(vectors_ND.mean(0), vectors_ND.std(0) + 1e-3)

    def __call__(self, vectors_ND: Tensor) -> Tensor:
        """Standardized vectors (N, D)."""
        return (vectors_ND - self.mean) / self.std


def distillation_loss(student_ND: Tensor, teacher_ND: Tensor, scale: Standardizer) -> tuple[Tensor, dict[str, float]]:
    """MSE between standardized vectors, and the metrics ``mse`` (not standardized), ``error`` and ``variance``.

    ``error`` (the loss) divided by ``variance`` (of the teacher's vectors) is the FVU: the squared error over the
    squared distance of the teacher's vectors from their mean (as in trident-nllb-llm2vec), here of standardized
    vectors. The training loop divides the means of many batches.
    """
    student, teacher = scale(student_ND), scale(teacher_ND)
    loss = torch.nn.functional.mse_loss(student, teacher)
    with torch.no_grad():
        mse = torch.nn.functional.mse_loss(student_ND, teacher_ND).item()
        variance = teacher.square().mean().item()
    return loss, {"mse": mse, "error": loss.item(), "variance": variance}
