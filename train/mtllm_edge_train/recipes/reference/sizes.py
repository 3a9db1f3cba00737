"""How much the reference recipe trains: what a CPU does in hours, and what a GPU is for. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    steps: int
    batch_size: int
    """Sentences, or pairs of sentences, in a step."""


@dataclass(frozen=True)
class Size:
    """The stages that take long. The teacher and task distillation, with few texts, are the same in every size."""

    translation: Stage
    adaptation: Stage
    """General adaptation."""
    languages: Stage
    """Distillation from translations."""
    device: str
    """Where it runs unless told otherwise."""


SIZES = {
    "cpu": Size(Stage(2_600, 96), Stage(1_600, 32), Stage(1_100, 48), device="cpu"),
    "gpu": Size(Stage(30_000, 512), Stage(20_000, 128), Stage(8_000, 256), device="cuda"),
}
"""The size ``gpu`` has not been run."""
