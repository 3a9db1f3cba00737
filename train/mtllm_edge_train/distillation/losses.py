"""Pooled vectors as regression targets.

A few dimensions of an LLM's states are far larger than the rest and would be all that a plain MSE sees, so targets are
standardised per dimension with the teacher's own mean and deviation. The MSE is then the fraction of variance
unexplained (FVU) averaged over the dimensions: 1 is as good as predicting the mean, 0 is perfect.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardizer:
    """Per-dimension mean and deviation of the teacher's vectors, both (D,)."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, vectors_ND: Tensor) -> Standardizer:
        """Measure a sample of the teacher's vectors."""
        return cls(vectors_ND.mean(0), vectors_ND.std(0) + 1e-3)

    def __call__(self, vectors_ND: Tensor) -> Tensor:
        """Standardised vectors (N, D)."""
        return (vectors_ND - self.mean) / self.deviation


def distillation_loss(student_ND: Tensor, teacher_ND: Tensor, scale: Standardizer) -> tuple[Tensor, dict[str, float]]:
    """MSE between standardised vectors, and figures of it: the plain ``mse``, the ``error`` and the ``variance``.

    The error, which is the loss, over the variance of the teacher's vectors is the FVU: the squared error over the
    squared distance of the teacher's vectors from their mean (trident-nllb-llm2vec's measure), here in standardised
    space. The loop divides means over many texts.
    """
    student, teacher = scale(student_ND), scale(teacher_ND)
    loss = torch.nn.functional.mse_loss(student, teacher)
    with torch.no_grad():
        mse = torch.nn.functional.mse_loss(student_ND, teacher_ND).item()
        variance = teacher.square().mean().item()
    return loss, {"mse": mse, "error": loss.item(), "variance": variance}
