"""Dynamic batching: a bounded queue and one compute thread that batches texts across requests.

Whenever the thread is free it takes waiting items up to a token budget and computes them in one call. A batch takes one
item of each request in turn, and a partly computed request goes to the end of the queue, so that a large request does
not delay small ones.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_RETRY_S = 60


class QueueFullError(Exception):
    """The queue has no room for a request."""

    def __init__(self, retry_after_s: int) -> None:
        """Take the expected waiting time in whole seconds, at least 1."""
        super().__init__(f"too many texts are waiting; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class _Job(Generic[Key, Item, Result]):
    """The items of one request."""

    key: Key
    items: Sequence[Item]
    tokens: Sequence[int]
    """Number of tokens of each item."""
    future: Future[list[Result]] = field(default_factory=Future)
    results: dict[int, Result] = field(default_factory=dict)
    started: int = 0
    """Number of items that have been put into a batch."""

    @property
    def waiting(self) -> int:
        return len(self.items) - self.started

    def finish(self, error: BaseException | None = None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result([self.results[index] for index in range(len(self.items))])


_Batch = list[tuple[_Job[Key, Item, Result], int]]
"""Jobs, each with the index of one of its items."""


class Batcher(Generic[Key, Item, Result]):
    """Queue of items that one thread computes in batches."""

    def __init__(
        self,
        compute: Callable[[Key, list[Item]], Sequence[Result]],
        *,
        max_waiting: int,
        batch_tokens: int,
        observe: Callable[[int, int], None] = lambda _items, _tokens: None,
    ) -> None:
        """Create an empty queue of `max_waiting` items at most; `run` processes it.

        Only the thread of `run` calls `compute`, which returns the results of items with the same key, in order. A
        batch has `batch_tokens` at most, unless a single item has more. `observe` gets the numbers of items and tokens
        before each batch.
        """
        self._compute, self._observe = compute, observe
        self._max_waiting, self._batch_tokens = max_waiting, batch_tokens
        self._changed = threading.Condition()
        self._queue: list[_Job[Key, Item, Result]] = []
        self._closed = False
        self._computed_tokens, self._busy_s = 0, 0.0

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        with self._changed:
            return sum(job.waiting for job in self._queue)

    def check_room(self, items: int) -> None:
        """Raise QueueFullError if the queue has no room for so many items, before work is spent on a request."""
        with self._changed:
            if self.waiting + items > self._max_waiting:
                raise QueueFullError(self._expected_wait_s())

    def submit(self, key: Key, items: Sequence[Item], tokens: Sequence[int]) -> Future[list[Result]]:
        """Add items, with the number of tokens of each, to the queue; only items with the same key share a batch.

        Returns:
            The results in the order of `items`. Canceling it removes the waiting items from the queue.

        Raises:
            QueueFullError: The queue has no room for them.
        """
        job: _Job[Key, Item, Result] = _Job(key, items, tokens)
        with self._changed:
            if self._closed:
                raise QueueFullError(1)
            self.check_room(len(items))
            if items:
                self._queue.append(job)
                self._changed.notify()
            else:
                job.finish()
        job.future.add_done_callback(lambda _: self._remove(job))
        return job.future

    def run(self) -> None:
        """Compute batches until `close` is called."""
        while batch := self._next_batch():
            tokens = sum(job.tokens[index] for job, index in batch)
            self._observe(len(batch), tokens)
            started = time.perf_counter()
            self._compute_batch(batch)
            self._busy_s += time.perf_counter() - started
            self._computed_tokens += tokens

    def close(self) -> None:
        """End `run` after its current batch, and cancel all waiting items."""
        with self._changed:
            self._closed = True
            jobs = list(self._queue)
            self._changed.notify()
        for job in jobs:
            job.future.cancel()

    def _next_batch(self) -> _Batch[Key, Item, Result]:
        """Wait for the next batch; it is empty after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return [] if self._closed else self._take_batch()

    def _take_batch(self) -> _Batch[Key, Item, Result]:
        """Take items of the jobs with the oldest job's key, one of each in turn, up to the token budget.

        The jobs then move to the end of the queue, and those without waiting items leave it.
        """
        turns = deque(job for job in self._queue if job.key == self._queue[0].key)
        batch: _Batch[Key, Item, Result] = []
        budget = self._batch_tokens
        while turns and (not batch or turns[0].tokens[turns[0].started] <= budget):
            job = turns.popleft()
            budget -= job.tokens[job.started]
            batch.append((job, job.started))
            job.started += 1
            if job.waiting:
                turns.append(job)
        jobs = {job for job, _ in batch}
        self._queue = sorted((job for job in self._queue if job.waiting), key=jobs.__contains__)
        return batch

    def _compute_batch(self, batch: _Batch[Key, Item, Result]) -> None:
        """Compute a batch. If that fails, compute each job alone, so that only the faulty one fails."""
        try:
            results = self._compute(batch[0][0].key, [job.items[index] for job, index in batch])
        except BaseException as error:  # a panic in Rust is not an Exception
            jobs = list(dict.fromkeys(job for job, _ in batch))
            if len(jobs) == 1:
                jobs[0].finish(error)
                return
            for failed in jobs:
                self._compute_batch([(job, index) for job, index in batch if job is failed])
            return
        for (job, index), result in zip(batch, results, strict=True):
            job.results[index] = result
            if len(job.results) == len(job.items):
                job.finish()

    def _remove(self, job: _Job[Key, Item, Result]) -> None:
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def _expected_wait_s(self) -> int:
        """Seconds until the queue is empty at the mean rate so far."""
        tokens = sum(sum(job.tokens[job.started :]) for job in self._queue)
        seconds = tokens * self._busy_s / self._computed_tokens if self._computed_tokens else 1.0
        return min(max(1, math.ceil(seconds)), _MAX_RETRY_S)
