"""Steps and batch sizes of the reference recipe, for a CPU and for a GPU. Requires no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Length of a training stage."""

    steps: int
    batch_size: int
    """Sentences or sentence pairs per step."""


@dataclass(frozen=True)
class Size:
    """Lengths of the long stages. The teacher and task distillation, with few texts, are the same in every size."""

    translation: Stage
    adaptation: Stage
    """General adaptation."""
    languages: Stage
    """Distillation from translations."""
    device: str
    """Default device."""


SIZES = {
    "cpu": Size(Stage(2_600, 96), Stage(1_600, 32), Stage(1_100, 48), device="cpu"),
    "gpu": Size(Stage(30_000, 512), Stage(20_000, 128), Stage(8_000, 256), device="cuda"),
}
"""The size ``gpu`` has not been run."""
