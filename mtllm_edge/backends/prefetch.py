"""Preparation of the next batch in a second thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")
Prepared = TypeVar("Prepared")


def prefetch(prepare: Callable[[Batch], Prepared], batches: Sequence[Batch]) -> Iterator[tuple[Batch, Prepared]]:
    """Yield each batch with the result of `prepare`, which runs one batch ahead of the caller.

    Engines release the interpreter lock while they compute, so the encoder computes the next batch while the LLM
    computes this one, and cores are busy while either waits for its slowest thread. An exception of `prepare` is raised
    when its batch is due.
    """
    if len(batches) < 2:
        for batch in batches:
            yield batch, prepare(batch)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="mtllm-edge-encoder") as thread:
        future = thread.submit(prepare, batches[0])
        for index, batch in enumerate(batches):
            prepared = future.result()
            if index + 1 < len(batches):
                future = thread.submit(prepare, batches[index + 1])
            yield batch, prepared
