"""The interface of a training stage, which `loop.run_stage` runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge_train.training.settings import LoopSettings


class Batches(Protocol):
    """A reproducible sequence of batches: the same step always gives the same items."""

    def __getitem__(self, step: int, /) -> Any:
        """Items of one step's batch, a list or an array."""


class TrainingPlan(NamedTuple):
    """What the optimizer works on."""

    parameter_groups: list[dict[str, Any]]
    """Groups for AdamW; a group may set its own ``lr``."""
    batches: Batches
    steps: int


@dataclass(kw_only=True, eq=False)
class Stage(ABC):
    """A training stage: its options are fields, its work is done in `check`, `build`, `loss` and `save`.

    They are called in this order, `loss` for every batch, `save` at intervals.
    """

    kind: ClassVar[str]
    """Name of the stage in logs and in `training.json`."""
    divisible: ClassVar[bool] = True
    """Whether the loss of a batch is the weighted mean over its parts, as required for accumulation."""

    name: str
    """Name of the checkpoint."""
    settings: LoopSettings
    sources: Sequence[WeightSource] = ()
    """Origins and licenses to record in the checkpoint."""
    config: Any = field(init=False)
    """Configuration of the checkpoint; set by `check`."""

    @abstractmethod
    def check(self) -> Sequence[object]:
        """Validate the options and set `config`.

        Returns:
            Options and digests of the data that the result depends on, besides `config` and `settings`. A run is
            resumed only where they are the same.
        """

    @abstractmethod
    def build(self, checkpoint: Path | None, log: Callable[[str], None]) -> TrainingPlan:
        """Load the models and data.

        Args:
            checkpoint: An unfinished run whose weights are loaded; None for a new run.
            log: Takes one line of text.
        """

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of a batch, and the metrics to log (see `gradient_accumulation.mean_metrics`)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the checkpoint's configuration and weights into an existing folder."""

    def loss_terms(self, batch: Any) -> int:
        """Number of terms in the mean that `loss` returns: the weight of a part of a batch."""
        return len(batch)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of a module that require gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
