"""Measure an MT-LLM beside other busy processes, and its effect on an interactive program.

Throughput of a bundle on the demo's sentences beside zero, one and two busy processes, as a share of the quiet figure;
a fair share is at least 1 / (1 + busy processes). Also the wake-up delay of a process that sleeps for 10 ms again and
again while the MT-LLM runs, like the event loop of a desktop program. Repeats take turns. The last line on stdout is
the result as JSON, which is also written.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import click

from mtllm_edge_bench import scripts
from mtllm_edge_bench.scripts import DEMO_TOPICS, bundle_option, output_option, repeats_option, require_extra, run

require_extra()
from mtllm_edge import console
from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge_bench.jobs import Job
from mtllm_edge_bench.report.report import Statistic
from mtllm_edge_bench.runner.measure import run_job
from mtllm_edge_bench.synthetic.demo_corpus import demo_rows

BUSY = (0, 1, 2)
"""Numbers of busy processes."""
_SLEEP_S = 0.01


class Result(scripts.Result, frozen=True, kw_only=True):
    """Throughput by number of busy processes, and wake-up delays."""

    threads: int
    bundle: str
    texts: int
    repeats: int
    texts_per_s: dict[int, Statistic]
    """By number of busy processes."""
    share_of_quiet: dict[int, float]
    fair_share: dict[int, float]
    """1 / (1 + busy processes)."""
    wake_up_delay_ms: dict[str, dict[str, float]]
    """On the idle machine (``idle``), and beside the MT-LLM (``mt_llm``)."""


@click.command()
@bundle_option
@click.option("--texts", type=click.IntRange(1, 940), default=256, show_default=True, metavar="N", help="Sentences.")
@repeats_option
@output_option
def main(*, bundle: Path, texts: int, repeats: int, out: Path) -> None:
    """Measure, and write neighbours-<date>.json."""
    manifest = Bundle.open(bundle).manifest
    job = Job(
        system="mt_llm",
        bundle=str(bundle),
        task=next(iter(manifest.tasks)),
        threads=default_threads(),
        batch_tokens={"stack": 512},
        texts=tuple(row.text for row in demo_rows(DEMO_TOPICS, texts)),
    )
    rates: dict[int, list[float]] = {busy: [] for busy in BUSY}
    delays: dict[str, list[float]] = {"idle": idle_delays(5.0), "mt_llm": []}
    for _ in range(repeats):
        for busy in BUSY:
            with busy_processes(busy), wake_up_delays(delays["mt_llm"] if busy == 0 else []):
                rates[busy].append(texts / run_job(job).seconds)
            console.note(f"{busy} busy processes: {rates[busy][-1]:.1f} texts/s")
    quiet = statistics.median(rates[0])
    result = Result(
        threads=job.threads,
        bundle=manifest.name,
        texts=texts,
        repeats=repeats,
        texts_per_s={busy: Statistic.of(values) for busy, values in rates.items()},
        share_of_quiet={busy: round(statistics.median(values) / quiet, 3) for busy, values in rates.items()},
        fair_share={busy: round(1 / (1 + busy), 3) for busy in BUSY},
        wake_up_delay_ms={name: percentiles(values) for name, values in delays.items()},
    )
    scripts.write_json(result, out / f"neighbours-{result.date}.json")
    scripts.print_json(result)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes that compute all the time."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(1.0 if count else 0.0)  # for their imports
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _compute() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        sum(range(10_000))


@contextmanager
def wake_up_delays(delays: list[float]) -> Iterator[None]:
    """Run a sleeping process beside the block, and append its wake-up delays in ms to `delays`."""
    context = multiprocessing.get_context("spawn")
    connection, child_connection = context.Pipe()
    process = context.Process(target=_sleep, args=(child_connection,), daemon=True)
    process.start()
    connection.recv()  # it has started
    try:
        yield
    finally:
        connection.send(None)
        delays += connection.recv()
        process.join()


def _sleep(pipe: Connection) -> None:
    pipe.send(None)
    delays: list[float] = []
    while not pipe.poll():
        before = time.perf_counter()
        time.sleep(_SLEEP_S)
        delays.append(1000 * (time.perf_counter() - before - _SLEEP_S))
    pipe.send(delays)


def idle_delays(seconds: float) -> list[float]:
    """Return the wake-up delays on the idle machine, in ms."""
    delays: list[float] = []
    with wake_up_delays(delays):
        time.sleep(seconds)
    return delays


def percentiles(delays: list[float]) -> dict[str, float]:
    """Return median, 95th and 99th percentile, and maximum."""
    ordered = sorted(delays)
    quantiles = {"median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    last = len(ordered) - 1
    return {name: round(ordered[min(last, int(share * len(ordered)))], 2) for name, share in quantiles.items()}


if __name__ == "__main__":
    run(main)
