"""Data-parallel training: under `accelerate launch` each process reads its shard of every batch.

The only module that uses accelerate. Gradients are summed here instead of by DistributedDataParallel, which expects one
call of one module per step: a stage's loss may call parts of its model several times (with its adapters off the
student's LLM is the teacher), and few parameters are trained. Heavy imports wait until there are several processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def process_rank() -> int:
    """Rank of this process; 0 without `accelerate launch`."""
    return int(os.environ.get("RANK", "0")) if _world_size() > 1 else 0


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def join_process_group(device: str) -> ProcessGroup:
    """Connect to the other processes, if any; with the device ``cuda``, select this process's GPU."""
    if _world_size() == 1:
        return ProcessGroup()
    import accelerate

    state = accelerate.PartialState(cpu=device == "cpu")
    return ProcessGroup(state.process_index, state.num_processes, state)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one model. All of them must call the same methods in the same order."""

    rank: int = 0
    size: int = 1
    _state: Any = None

    def shard(self, batch: Sequence[Any]) -> Sequence[Any]:
        """This process's items of a batch: every `size`-th, so that all processes get long and short texts."""
        return batch[self.rank :: self.size]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            self._state.wait_for_everyone()

    def sum_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """Sum metrics of the same names over the processes."""
        if self.size == 1:
            return metrics
        import torch

        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=self._state.device)
        return dict(zip(metrics, self._sum(values).tolist(), strict=True))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sums over the processes; None stays None where no process has a gradient."""
        if self.size == 1:
            return
        import torch

        present = torch.tensor([float(each.grad is not None) for each in parameters], device=parameters[0].device)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        summed = self._sum(torch.cat([present, *(gradient.flatten() for gradient in gradients)]))
        counts, *parts = summed.split([len(parameters), *(each.numel() for each in parameters)])
        for count, parameter, part in zip(counts.tolist(), parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if count else None

    def broadcast_parameters(self, parameters: Sequence[nn.Parameter]) -> None:
        """Copy the weights of the first process to all others."""
        if self.size > 1:
            from accelerate.utils import broadcast

            for parameter in parameters:
                broadcast(parameter.data)

    def _sum(self, values: Any) -> Any:
        from accelerate.utils import reduce

        return reduce(values, reduction="sum")
