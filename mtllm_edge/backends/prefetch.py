"""Work that is made ready in a second thread while the work before it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Ready = TypeVar("Ready")


def prefetch(prepare: Callable[[Job], Ready], jobs: Sequence[Job]) -> Iterator[tuple[Job, Ready]]:
    """Jobs in order, each with what `prepare` made of it, one job ahead of the caller.

    Engines leave the interpreter's lock alone while they compute, so the encoder reads the next batch while the LLM
    reads this one, and the cores are busy where either of them waits for its slowest thread. An exception of `prepare`
    arrives when its job is due.
    """
    if len(jobs) < 2:
        for job in jobs:
            yield job, prepare(job)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="mtllm-edge-encoder") as thread:
        coming = thread.submit(prepare, jobs[0])
        for index, job in enumerate(jobs):
            ready = coming.result()
            if index + 1 < len(jobs):
                coming = thread.submit(prepare, jobs[index + 1])
            yield job, ready
