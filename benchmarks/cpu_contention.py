"""What an MT-LLM does beside other busy processes, and to a program that waits for its user.

Throughput of a bundle on the demo's sentences with none, one and two processes beside it that do nothing but compute,
as a share of the quiet figure; fair shares would leave it 1 / (1 + busy processes) of one core each at worst. And how
late a process wakes up that sleeps 10 ms again and again while the MT-LLM works alone, as the event loop of a desktop
program does. Repeats take turns. The last line of stdout is the result as JSON, which is also written.
"""

from __future__ import annotations

import datetime
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import click
import msgspec

from mtllm_edge import console
from mtllm_edge.backends.cpu import available_cores, default_threads, read_cpu
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge_bench.jobs import Job
from mtllm_edge_bench.report.report import Statistic
from mtllm_edge_bench.runner.measure import run_job
from mtllm_edge_bench.synthetic.demo_corpus import demo_rows

HERE = Path(__file__).parent
BUSY = (0, 1, 2)
"""Busy processes beside the MT-LLM."""
_NAP = 0.01
_PATH = click.Path(path_type=Path)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is written."""

    date: str
    cpu: str
    cores: int
    threads: int
    bundle: str
    texts: int
    repeats: int
    texts_per_s: dict[int, Statistic]
    """By number of busy processes."""
    share_of_quiet: dict[int, float]
    fair_share: dict[int, float]
    """The bar: 1 / (1 + busy processes)."""
    wake_up_delay_ms: dict[str, dict[str, float]]
    """Of a process that naps: on the quiet machine (``idle``), and beside the MT-LLM (``mt_llm``)."""


@click.command()
@click.option("--bundle", type=_PATH, default=HERE.parent / "build/reference", help="`make demo` makes the default.")
@click.option(
    "--texts", type=click.IntRange(1, 940), default=256, show_default=True, metavar="N", help="Of the demo's."
)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N")
@click.option("-o", "--output", "out", type=_PATH, default=HERE / "results", show_default="results", help="Folder.")
def main(*, bundle: Path, texts: int, repeats: int, out: Path) -> None:
    """Measure, and write neighbours-<date>.json."""
    manifest = Bundle.open(bundle).manifest
    job = Job(
        system="mt_llm",
        bundle=str(bundle),
        task=next(iter(manifest.tasks)),
        threads=default_threads(),
        batch_tokens={"stack": 512},
        texts=tuple(row.text for row in demo_rows(HERE / "demo_topics.csv", texts)),
    )
    rates: dict[int, list[float]] = {busy: [] for busy in BUSY}
    delays: dict[str, list[float]] = {"idle": napping_for(5.0), "mt_llm": []}
    for _ in range(repeats):
        for busy in BUSY:
            with busy_processes(busy), napper(delays["mt_llm"] if busy == 0 else []):
                rates[busy].append(texts / run_job(job).seconds)
            console.note(f"{busy} busy beside it: {rates[busy][-1]:.1f} texts/s")
    quiet = statistics.median(rates[0])
    result = Result(
        date=datetime.date.today().isoformat(),
        cpu=read_cpu().model,
        cores=available_cores(),
        threads=job.threads,
        bundle=manifest.name,
        texts=texts,
        repeats=repeats,
        texts_per_s={busy: Statistic.of(found) for busy, found in rates.items()},
        share_of_quiet={busy: round(statistics.median(found) / quiet, 3) for busy, found in rates.items()},
        fair_share={busy: round(1 / (1 + busy), 3) for busy in BUSY},
        wake_up_delay_ms={name: percentiles(found) for name, found in delays.items()},
    )
    text = msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    out.mkdir(parents=True, exist_ok=True)
    (out / f"neighbours-{result.date}.json").write_text(text + "\n", encoding="utf-8")
    click.echo(msgspec.json.encode(result).decode())


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(1.0 if count else 0.0)  # they import first
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _compute() -> None:
    while True:
        sum(range(10_000))


@contextmanager
def napper(delays: list[float]) -> Iterator[None]:
    """A process that naps while the block runs; how late it woke up each time, in ms, is added to `delays`."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_nap, args=(its,), daemon=True)
    process.start()
    mine.recv()  # it is there
    try:
        yield
    finally:
        mine.send(None)
        delays += mine.recv()
        process.join()


def _nap(pipe: Connection) -> None:
    pipe.send(None)
    delays: list[float] = []
    while not pipe.poll():
        before = time.perf_counter()
        time.sleep(_NAP)
        delays.append(1000 * (time.perf_counter() - before - _NAP))
    pipe.send(delays)


def napping_for(seconds: float) -> list[float]:
    """The same with nothing beside it."""
    delays: list[float] = []
    with napper(delays):
        time.sleep(seconds)
    return delays


def percentiles(delays: list[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile, and the largest."""
    ordered = sorted(delays)
    places = {"median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(place * len(ordered)))], 2) for name, place in places.items()}


if __name__ == "__main__":
    main()
