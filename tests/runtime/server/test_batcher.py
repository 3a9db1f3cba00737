from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mtllm_edge.server.batcher import Batcher, QueueFullError

TIMEOUT_S = 30


class Recorder:
    """Double numbers, record every call, and block on request."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.open, self.started = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, key: str, items: list[int]) -> list[int]:
        self.started.set()
        assert self.open.wait(TIMEOUT_S)
        self.calls.append((key, items))
        if -1 in items:
            raise ValueError("minus one")
        return [2 * item for item in items]


@contextmanager
def running(
    recorder: Recorder,
    *,
    max_waiting: int = 1000,
    batch_tokens: int = 10,
    observe: Callable[[int, int], None] = lambda _items, _tokens: None,
) -> Iterator[Batcher[str, int, int]]:
    batcher: Batcher[str, int, int] = Batcher(
        recorder, max_waiting=max_waiting, batch_tokens=batch_tokens, observe=observe
    )
    thread = threading.Thread(target=batcher.run)
    thread.start()
    try:
        yield batcher
    finally:
        recorder.open.set()
        batcher.close()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def block(recorder: Recorder, batcher: Batcher[str, int, int]) -> Future[list[int]]:
    """Block the thread with one item, so that further items wait."""
    recorder.open.clear()
    recorder.started.clear()
    first = batcher.submit("x", [0], [1])
    assert recorder.started.wait(TIMEOUT_S)
    return first


def test_waiting_items_share_a_batch() -> None:
    recorder, observed = Recorder(), []
    with running(recorder, observe=lambda items, tokens: observed.append((items, tokens))) as batcher:
        block(recorder, batcher)
        futures = [batcher.submit("a", [n, 10 * n], [1, 2]) for n in (1, 2, 3)]
        assert batcher.waiting == 6
        recorder.open.set()
        assert [future.result(TIMEOUT_S) for future in futures] == [[2, 20], [4, 40], [6, 60]]
        assert batcher.waiting == 0
    assert recorder.calls == [("x", [0]), ("a", [1, 2, 3, 10, 20, 30])]
    assert observed == [(1, 1), (6, 9)]


def test_batches_respect_the_token_budget() -> None:
    recorder = Recorder()
    with running(recorder, batch_tokens=10) as batcher:
        block(recorder, batcher)
        future = batcher.submit("a", [1, 2, 3, 4], [6, 4, 25, 1])
        recorder.open.set()
        assert future.result(TIMEOUT_S) == [2, 4, 6, 8]
    assert recorder.calls[1:] == [("a", [1, 2]), ("a", [3]), ("a", [4])]


def test_a_large_request_does_not_delay_small_ones() -> None:
    recorder = Recorder()
    with running(recorder, batch_tokens=4) as batcher:
        block(recorder, batcher)
        large = batcher.submit("a", list(range(100, 110)), [1] * 10)
        small = batcher.submit("a", [1], [1])
        other = batcher.submit("b", [2], [1])
        recorder.open.set()
        assert (small.result(TIMEOUT_S), other.result(TIMEOUT_S)) == ([2], [4])
        assert large.result(TIMEOUT_S) == [2 * n for n in range(100, 110)]
    assert recorder.calls[1:] == [
        ("a", [100, 1, 101, 102]),
        ("b", [2]),
        ("a", [103, 104, 105, 106]),
        ("a", [107, 108, 109]),
    ]


def test_a_full_queue_refuses_with_a_waiting_time() -> None:
    recorder = Recorder()
    with running(recorder, max_waiting=3) as batcher:
        block(recorder, batcher)
        waiting = batcher.submit("a", [1, 2], [1, 1])
        with pytest.raises(QueueFullError, match="try again in 1 s") as refused:
            batcher.submit("a", [3, 4], [1, 1])
        assert refused.value.retry_after_s == 1
        with pytest.raises(QueueFullError):
            batcher.check_room(2)
        batcher.check_room(1)
        waiting.cancel()
        later = batcher.submit("a", [3, 4, 5], [1, 1, 1])
        recorder.open.set()
        assert later.result(TIMEOUT_S) == [6, 8, 10]
    assert recorder.calls[1:] == [("a", [3, 4, 5])], "canceled items are not computed"


def test_a_running_item_can_be_canceled() -> None:
    recorder = Recorder()
    with running(recorder) as batcher:
        first = block(recorder, batcher)
        second = batcher.submit("x", [1], [1])
        assert first.cancel()
        recorder.open.set()
        assert second.result(TIMEOUT_S) == [2]


def test_a_failure_affects_one_request() -> None:
    recorder = Recorder()
    with running(recorder) as batcher:
        block(recorder, batcher)
        good, bad, also_good = (batcher.submit("a", items, [1] * len(items)) for items in ([1, 2], [3, -1], [4]))
        recorder.open.set()
        assert (good.result(TIMEOUT_S), also_good.result(TIMEOUT_S)) == ([2, 4], [8])
        with pytest.raises(ValueError, match="minus one"):
            bad.result(TIMEOUT_S)
        assert batcher.submit("a", [5], [1]).result(TIMEOUT_S) == [10]


def test_a_failed_request_leaves_the_queue() -> None:
    recorder = Recorder()
    with running(recorder, batch_tokens=2) as batcher:
        block(recorder, batcher)
        bad = batcher.submit("a", [-1, 1, 2, 3], [1] * 4)
        recorder.open.set()
        with pytest.raises(ValueError, match="minus one"):
            bad.result(TIMEOUT_S)
        assert batcher.submit("a", [5], [1]).result(TIMEOUT_S) == [10]
    assert recorder.calls[1:] == [("a", [-1, 1]), ("a", [5])]


def test_no_items() -> None:
    with running(Recorder()) as batcher:
        assert batcher.submit("a", [], []).result(TIMEOUT_S) == []


def test_close_cancels_waiting_items_and_refuses_new_ones() -> None:
    recorder = Recorder()
    with running(recorder) as batcher:
        first = block(recorder, batcher)
        waiting = batcher.submit("a", [1], [1])
        batcher.close()
        with pytest.raises(CancelledError):
            waiting.result(TIMEOUT_S)
        with pytest.raises(QueueFullError):
            batcher.submit("a", [2], [1])
        recorder.open.set()
        assert first.result(TIMEOUT_S) == [0], "the current batch is finished"
    assert [key for key, _ in recorder.calls] == ["x"]


def test_concurrent_callers() -> None:
    recorder = Recorder()

    def call(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            items = [rng.randrange(10_000) for _ in range(rng.randrange(1, 8))]
            future = batcher.submit(rng.choice("ab"), items, [rng.randrange(1, 6) for _ in items])
            if rng.random() < 0.2:
                future.cancel()
            else:
                assert future.result(TIMEOUT_S) == [2 * item for item in items]

    with running(recorder) as batcher, ThreadPoolExecutor(16) as threads:
        list(threads.map(call, range(16)))
        assert batcher.waiting == 0
    assert max(len(items) for _, items in recorder.calls) > 1
