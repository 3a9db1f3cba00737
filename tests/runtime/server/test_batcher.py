from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mtllm_edge.server.batcher import Batcher, QueueFullError

PATIENCE = 30


class Recorder:
    """Doubles numbers, remembers every call, and can be held up."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.open, self.at_work = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, key: str, items: list[int]) -> list[int]:
        self.at_work.set()
        assert self.open.wait(PATIENCE)
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
        thread.join(PATIENCE)
        assert not thread.is_alive()


def hold(recorder: Recorder, batcher: Batcher[str, int, int]) -> Future[list[int]]:
    """Keep the thread busy with an item, so that what comes now waits."""
    recorder.open.clear()
    recorder.at_work.clear()
    first = batcher.submit("x", [0], [1])
    assert recorder.at_work.wait(PATIENCE)
    return first


def test_what_waits_is_computed_together_and_every_caller_gets_its_own() -> None:
    recorder, seen = Recorder(), []
    with running(recorder, observe=lambda items, tokens: seen.append((items, tokens))) as batcher:
        hold(recorder, batcher)
        answers = [batcher.submit("a", [n, 10 * n], [1, 2]) for n in (1, 2, 3)]
        assert batcher.waiting == 6
        recorder.open.set()
        assert [answer.result(PATIENCE) for answer in answers] == [[2, 20], [4, 40], [6, 60]]
        assert batcher.waiting == 0
    assert recorder.calls == [("x", [0]), ("a", [1, 2, 3, 10, 20, 30])]
    assert seen == [(1, 1), (6, 9)]


def test_the_budget_is_kept_and_a_longer_item_goes_alone() -> None:
    recorder = Recorder()
    with running(recorder, batch_tokens=10) as batcher:
        hold(recorder, batcher)
        answer = batcher.submit("a", [1, 2, 3, 4], [6, 4, 25, 1])
        recorder.open.set()
        assert answer.result(PATIENCE) == [2, 4, 6, 8]
    assert recorder.calls[1:] == [("a", [1, 2]), ("a", [3]), ("a", [4])]


def test_a_large_request_holds_nobody_up() -> None:
    recorder = Recorder()
    with running(recorder, batch_tokens=4) as batcher:
        hold(recorder, batcher)
        large = batcher.submit("a", list(range(100, 110)), [1] * 10)
        small = batcher.submit("a", [1], [1])
        other = batcher.submit("b", [2], [1])
        recorder.open.set()
        assert (small.result(PATIENCE), other.result(PATIENCE)) == ([2], [4])
        assert large.result(PATIENCE) == [2 * n for n in range(100, 110)]
    assert recorder.calls[1:] == [
        ("a", [100, 1, 101, 102]),
        ("b", [2]),
        ("a", [103, 104, 105, 106]),
        ("a", [107, 108, 109]),
    ]


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    recorder = Recorder()
    with running(recorder, max_waiting=3) as batcher:
        hold(recorder, batcher)
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
        assert later.result(PATIENCE) == [6, 8, 10]
    assert recorder.calls[1:] == [("a", [3, 4, 5])], "what was cancelled is never computed"


def test_what_is_cancelled_at_work_disturbs_nobody() -> None:
    recorder = Recorder()
    with running(recorder) as batcher:
        first = hold(recorder, batcher)
        second = batcher.submit("x", [1], [1])
        assert first.cancel()
        recorder.open.set()
        assert second.result(PATIENCE) == [2]


def test_a_failure_is_that_of_one_request() -> None:
    recorder = Recorder()
    with running(recorder) as batcher:
        hold(recorder, batcher)
        good, bad, also_good = (batcher.submit("a", items, [1] * len(items)) for items in ([1, 2], [3, -1], [4]))
        recorder.open.set()
        assert (good.result(PATIENCE), also_good.result(PATIENCE)) == ([2, 4], [8])
        with pytest.raises(ValueError, match="minus one"):
            bad.result(PATIENCE)
        assert batcher.submit("a", [5], [1]).result(PATIENCE) == [10]


def test_a_request_that_failed_leaves_the_queue() -> None:
    recorder = Recorder()
    with running(recorder, batch_tokens=2) as batcher:
        hold(recorder, batcher)
        bad = batcher.submit("a", [-1, 1, 2, 3], [1] * 4)
        recorder.open.set()
        with pytest.raises(ValueError, match="minus one"):
            bad.result(PATIENCE)
        assert batcher.submit("a", [5], [1]).result(PATIENCE) == [10]
    assert recorder.calls[1:] == [("a", [-1, 1]), ("a", [5])]


def test_no_items() -> None:
    with running(Recorder()) as batcher:
        assert batcher.submit("a", [], []).result(PATIENCE) == []


def test_close_cancels_what_waits_and_refuses_more() -> None:
    recorder = Recorder()
    with running(recorder) as batcher:
        first = hold(recorder, batcher)
        waiting = batcher.submit("a", [1], [1])
        batcher.close()
        with pytest.raises(CancelledError):
            waiting.result(PATIENCE)
        with pytest.raises(QueueFullError):
            batcher.submit("a", [2], [1])
        recorder.open.set()
        assert first.result(PATIENCE) == [0], "what the thread is at is finished"
    assert [key for key, _ in recorder.calls] == ["x"]


def test_many_callers_at_once() -> None:
    recorder = Recorder()

    def call(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            items = [rng.randrange(10_000) for _ in range(rng.randrange(1, 8))]
            answer = batcher.submit(rng.choice("ab"), items, [rng.randrange(1, 6) for _ in items])
            if rng.random() < 0.2:
                answer.cancel()
            else:
                assert answer.result(PATIENCE) == [2 * item for item in items]

    with running(recorder) as batcher, ThreadPoolExecutor(16) as threads:
        list(threads.map(call, range(16)))
        assert batcher.waiting == 0
    assert max(len(items) for _, items in recorder.calls) > 1
