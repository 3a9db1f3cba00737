"""Gradient accumulation: the batch of a step is divided among processes and into micro-batches."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mtllm_edge.errors import UsageError
from mtllm_edge_train.training.distributed import ProcessGroup


def micro_batches(
    batch: Sequence[Any], accumulate: int, group: ProcessGroup, loss_terms: Callable[[Any], int] = len
) -> Iterator[tuple[Sequence[Any], float]]:
    """Yield the parts of this process's shard of a batch, at most `accumulate`, with their weights in the mean.

    `loss_terms` returns the number of terms in the mean loss of a part.

    Raises:
        UsageError: There are fewer items than processes.
    """
    if len(batch) < group.size:
        raise UsageError(f"a step has {len(batch)} texts for {group.size} processes; increase the batch size")
    shard = group.shard(batch)
    size = math.ceil(len(shard) / accumulate)
    total = loss_terms(batch)
    for start in range(0, len(shard), size):
        part = shard[start : start + size]
        yield part, loss_terms(part) / total


def backward(
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]], parts: Iterable[tuple[Any, float]]
) -> dict[str, float]:
    """Accumulate the gradients of weighted parts; return the weighted sums of the loss and the metrics."""
    sums: defaultdict[str, float] = defaultdict(float)
    for part, weight in parts:
        value, metrics = loss(part)
        (value * weight).backward()  # type: ignore[no-untyped-call]
        for name, metric in {"loss": value.item(), **metrics}.items():
            sums[name] += weight * metric
    return dict(sums)


def mean_metrics(entries: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over steps, where ``error`` and a ``variance`` above 0 become their ratio ``fvu``.

    Unlike a mean of ratios, a ratio of means does not depend on how the batches were divided.
    """
    means = {name: float(np.mean([entry[name] for entry in entries])) for name in entries[0]}
    error = means.pop("error", 0.0)
    if variance := means.pop("variance", 0.0):
        means["fvu"] = error / variance
    return means
