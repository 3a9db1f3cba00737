"""One thread that computes, and a bounded queue before it whose texts are read together, whoever sent them.

Many small requests cost as much as a few large ones only if their texts share batches. So the thread takes, whenever it
is free, what waits, up to a budget of tokens, gives it to the model in one call, and hands every request its own
results. A request's texts are taken in turn with those of the others, one by one, and a request that is not through
goes to the end of the queue: a large one holds nobody up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")

_LONGEST_ADVICE_S = 60


class QueueFullError(Exception):
    """There is no room for a request now."""

    def __init__(self, retry_after_s: int) -> None:
        """Say when there may be: whole seconds, at least 1."""
        super().__init__(f"too many texts are waiting; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class _Job(Generic[Key, Item, Result]):
    """The texts of one request."""

    key: Key
    items: Sequence[Item]
    tokens: Sequence[int]
    """Of each item."""
    answer: Future[list[Result]] = field(default_factory=Future)
    results: dict[int, Result] = field(default_factory=dict)
    taken: int = 0
    """Items that the model has been given."""

    @property
    def left(self) -> int:
        return len(self.items) - self.taken


_Batch = list[tuple[_Job[Key, Item, Result], int]]
"""Jobs, each with the index of one of its items."""


class Batcher(Generic[Key, Item, Result]):
    """A thread that gives `compute` the items of many callers at once."""

    def __init__(
        self,
        compute: Callable[[Key, list[Item]], Sequence[Result]],
        *,
        max_waiting: int,
        batch_tokens: int,
        observe: Callable[[int, int], None] = lambda _items, _tokens: None,
    ) -> None:
        """Prepare the queue; `run` works it off.

        Args:
            compute: From items that share a key to their results, in order. Called by one thread alone.
            max_waiting: Most items in the queue.
            batch_tokens: Most tokens in a call of `compute`, unless a single item has more.
            observe: Told the number of items and of tokens before every call.
        """
        self._compute, self._observe = compute, observe
        self._max_waiting, self._batch_tokens = max_waiting, batch_tokens
        self._changed = threading.Condition()
        self._queue: list[_Job[Key, Item, Result]] = []
        self._closed = False
        self._tokens_read, self._busy_s = 0, 0.0

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        with self._changed:
            return sum(job.left for job in self._queue)

    def check_room(self, items: int) -> None:
        """Refuse what would not fit now, before anything is done for it.

        Raises:
            QueueFullError: So many more items do not fit into the queue.
        """
        with self._changed:
            if sum(job.left for job in self._queue) + items > self._max_waiting:
                raise QueueFullError(self._advice_s())

    def submit(self, key: Key, items: Sequence[Item], tokens: Sequence[int]) -> Future[list[Result]]:
        """Queue items.

        Args:
            key: Only items with the same key are computed together.
            items: What `compute` is given.
            tokens: Number of tokens of each item.

        Returns:
            The results in the order of `items`. To cancel it takes what still waits out of the queue.

        Raises:
            QueueFullError: They do not fit.
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
                job.answer.set_result([])
        job.answer.add_done_callback(lambda _: self._drop(job))
        return job.answer

    def run(self) -> None:
        """Compute until `close`; the body of the thread."""
        while batch := self._next_batch():
            tokens = sum(job.tokens[index] for job, index in batch)
            self._observe(len(batch), tokens)
            started = time.perf_counter()
            self._work(batch)
            self._busy_s += time.perf_counter() - started
            self._tokens_read += tokens

    def close(self) -> None:
        """Let `run` return after the batch that it is at; what waits is cancelled."""
        with self._changed:
            self._closed = True
            left = list(self._queue)
            self._changed.notify()
        for job in left:
            job.answer.cancel()

    def _next_batch(self) -> _Batch[Key, Item, Result]:
        """What is computed next, after waiting for it; empty once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return [] if self._closed else self._take()

    def _take(self) -> _Batch[Key, Item, Result]:
        """An item of every job with the oldest one's key in turn, until the budget is spent."""
        sharing = [job for job in self._queue if job.key == self._queue[0].key]
        batch: _Batch[Key, Item, Result] = []
        room = self._batch_tokens
        while sharing:
            for job in sharing:
                tokens = job.tokens[job.taken]
                if batch and tokens > room:
                    self._requeue({job for job, _ in batch})
                    return batch
                batch.append((job, job.taken))
                job.taken += 1
                room -= tokens
            sharing = [job for job in sharing if job.left]
        self._requeue({job for job, _ in batch})
        return batch

    def _requeue(self, served: set[_Job[Key, Item, Result]]) -> None:
        """Those that were not served stay in front; those that are through leave."""
        first = [job for job in self._queue if job not in served]
        self._queue = first + [job for job in self._queue if job in served and job.left]

    def _work(self, batch: _Batch[Key, Item, Result]) -> None:
        """Compute a batch; if that fails, each job's share by itself, so that only the one at fault fails."""
        try:
            results = self._compute(batch[0][0].key, [job.items[index] for job, index in batch])
        except BaseException as error:  # a panic in Rust is no Exception
            jobs = list(dict.fromkeys(job for job, _ in batch))
            if len(jobs) == 1:
                _finish(jobs[0], error)
                return
            for alone in jobs:
                self._work([(job, index) for job, index in batch if job is alone])
            return
        for (job, index), result in zip(batch, results, strict=True):
            job.results[index] = result
            if len(job.results) == len(job.items):
                _finish(job, None)

    def _drop(self, job: _Job[Key, Item, Result]) -> None:
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def _advice_s(self) -> int:
        """Seconds until the queue is worked off, by the rate so far."""
        left = sum(sum(job.tokens[job.taken :]) for job in self._queue)
        expected_s = left * self._busy_s / self._tokens_read if self._tokens_read else 1.0
        return min(max(1, math.ceil(expected_s)), _LONGEST_ADVICE_S)


def _finish(job: _Job[Key, Item, Result], error: BaseException | None) -> None:
    if not job.answer.set_running_or_notify_cancel():  # its caller has gone
        return
    if error is not None:
        job.answer.set_exception(error)
    else:
        job.answer.set_result([job.results[index] for index in range(len(job.items))])
