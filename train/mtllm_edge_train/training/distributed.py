"""Several processes train one model: under `accelerate launch` each reads its share of every step's batch.

The one room that knows accelerate. Gradients are summed here and not by DistributedDataParallel, which wants one module
that is called once a step: a stage's loss may call a part of its model several times (the teacher is the student's LLM
with its adapters off), and what is trained is small. Nothing heavy is imported before there are several processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def rank() -> int:
    """Number of this process among those that train together; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if _size() > 1 else 0


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def join(device: str) -> Processes:
    """Meet the other processes, if there are any; a process of its own GPU makes that the current one.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    if _size() == 1:
        return Processes()
    import accelerate

    state = accelerate.PartialState(cpu=device == "cpu")
    return Processes(state.process_index, state.num_processes, state)


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them. All of them must call the same methods in turn."""

    rank: int = 0
    size: int = 1
    _state: Any = None

    def share(self, batch: Sequence[Any]) -> Sequence[Any]:
        """This process's items of a batch: every `size`-th, so that all get long and short ones."""
        return batch[self.rank :: self.size]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            self._state.wait_for_everyone()

    def sum_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Sums over the processes of figures with the same names."""
        if self.size == 1:
            return figures
        import torch

        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self._state.device)
        return dict(zip(figures, self._sum(values).tolist(), strict=True))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sums over the processes; one that no process has stays None."""
        if self.size == 1:
            return
        import torch

        present = torch.tensor([float(each.grad is not None) for each in parameters], device=parameters[0].device)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        summed = self._sum(torch.cat([present, *(gradient.flatten() for gradient in gradients)]))
        counts, *parts = summed.split([len(parameters), *(each.numel() for each in parameters)])
        for count, parameter, part in zip(counts.tolist(), parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if count else None

    def same_weights(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give all processes the weights of the first one."""
        if self.size > 1:
            from accelerate.utils import broadcast

            for parameter in parameters:
                broadcast(parameter.data)

    def _sum(self, values: Any) -> Any:
        from accelerate.utils import reduce

        return reduce(values, reduction="sum")
