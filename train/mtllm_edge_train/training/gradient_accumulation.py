"""One step of training: its batch divided among the processes and into parts, and put together again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from mtllm_edge.errors import UsageError
from mtllm_edge_train.training.distributed import Processes


class Batches(Protocol):
    """Step -> the items of its batch, all of them, as a list or an array; the same ones whenever it is asked."""

    def __getitem__(self, step: int, /) -> Any:
        """The batch of one step."""


def divided(
    batch: Sequence[Any], accumulate: int, processes: Processes, size: Callable[[Any], int] = len
) -> Iterator[tuple[Sequence[Any], float]]:
    """This process's parts of a batch, at most `accumulate`, and the weight of each, by its size, in the batch's mean.

    Raises:
        UsageError: The batch has no item for some process.
    """
    if len(batch) < processes.size:
        raise UsageError(f"a step has {len(batch)} texts for {processes.size} processes; give it one for each at least")
    share = processes.share(batch)
    items = math.ceil(len(share) / accumulate)
    whole = size(batch)
    for start in range(0, len(share), items):
        part = share[start : start + items]
        yield part, size(part) / whole


def backward(
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]], parts: Iterable[tuple[Any, float]]
) -> dict[str, float]:
    """Add up the gradients of all parts, and return the weighted sums of loss and figures."""
    sums: defaultdict[str, float] = defaultdict(float)
    for part, weight in parts:
        value, figures = loss(part)
        (value * weight).backward()  # type: ignore[no-untyped-call]
        for name, figure in {"loss": value.item(), **figures}.items():
            sums[name] += weight * figure
    return dict(sums)


def means_of(entries: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over some steps; ``error`` and a ``variance`` above 0 become ``fvu``, their ratio.

    A ratio of means does not depend on how the batches were divided; a mean of ratios would.
    """
    means = {name: float(np.mean([entry[name] for entry in entries])) for name in entries[0]}
    error = means.pop("error", 0.0)
    if variance := means.pop("variance", 0.0):
        means["fvu"] = error / variance
    return means
