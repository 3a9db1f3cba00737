"""Result of the load test, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np


class Latency(msgspec.Struct, frozen=True):
    """Percentiles over successful requests, in ms."""

    requests: int
    p50: float
    p90: float
    p99: float
    max: float


class LoadTestResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the load test."""

    date: str
    cpu: str
    cores: int
    load_before: float
    """Load average of the minute before: other work on the machine."""
    bundle: str
    clients: int
    seconds: float
    """From the first request to the last response."""
    distinct_texts: int
    requests: int
    texts: int
    texts_per_s: float
    one_by_one_texts_per_s: float
    """Rate of the reference calls: single texts in Python, without a server."""
    latency_ms: dict[str, Latency]
    """Kind of request -> latency."""
    statuses: dict[str, int]
    wrong: int
    lost: int
    tolerance: float
    offline_probability_difference: float
    """Largest difference between a text alone and in one batch of all texts, without a server."""
    largest_probability_difference: float
    smallest_cosine: float
    mean_texts_per_batch: float
    """From the server's metrics."""
    server_exit_code: int
    examples: list[str]
    """Descriptions of wrong or lost results, at most ten."""


def latency(seconds: Sequence[float]) -> Latency:
    """Return the percentiles of durations."""
    percentiles = 1000 * np.percentile(seconds or [0.0], (50, 90, 99, 100))
    return Latency(len(seconds), *(round(float(value), 1) for value in percentiles))


def write_load_test(result: LoadTestResult, folder: Path) -> None:
    """Write the result as JSON and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    (folder / "load_test.json").write_text(content + "\n", encoding="utf-8")
    (folder / "load_test.md").write_text(to_markdown(result), encoding="utf-8")


def to_markdown(result: LoadTestResult) -> str:
    """Return the result as a Markdown page."""
    rows = [
        f"| {kind} | {row.requests} | {row.p50:.0f} | {row.p90:.0f} | {row.p99:.0f} | {row.max:.0f} |"
        for kind, row in result.latency_ms.items()
    ]
    statuses = ", ".join(f"{number} × {status}" for status, number in result.statuses.items())
    lines = [
        "# Load test",
        "",
        f"{result.clients} clients on loopback for {result.seconds:.0f} s, bundle `{result.bundle}`, "
        f"{result.cpu}, {result.cores} cores shared by server and clients, {result.date}. "
        f"Load average before the test: {result.load_before}. Created by `python benchmarks/load_test.py`.",
        "",
        "| requests | number | p50 ms | p90 ms | p99 ms | max ms |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"- {result.texts} texts in {result.requests} requests, {result.texts_per_s} texts/s "
        f"(one by one in Python, without a server: {result.one_by_one_texts_per_s}); "
        f"{result.mean_texts_per_batch} texts per batch on average.",
        f"- Statuses: {statuses}. Exit code of the server after SIGTERM: {result.server_exit_code}.",
        f"- **{result.wrong} wrong, {result.lost} lost**, compared with each text alone: "
        f"probabilities differ by at most {result.largest_probability_difference} (tolerance {result.tolerance}; "
        f"in one batch of all texts, without a server, by {result.offline_probability_difference}), "
        f"the cosine of embeddings is at least {result.smallest_cosine}, and no other text's is closer.",
        *(f"    - {example}" for example in result.examples),
    ]
    return "\n".join(lines) + "\n"
