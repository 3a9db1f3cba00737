"""Measure memory and overhead of a long batch job: `python benchmarks/long_job.py`.

Short unique rows with the words of the demo's sentences go through `mtllm-edge classify` from csv to csv, while its
memory is sampled. The same texts go through `Classifier.classify` in this process, half of them before and half after
the job, in case the machine's speed changes. Both figures include loading the model. Compare CPU seconds if other
programs use the machine. The last line on stdout is the result as JSON, which is also written.
"""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from mtllm_edge import Bundle, Classifier, console
from mtllm_edge_bench import scripts
from mtllm_edge_bench.scripts import DEMO_TOPICS, PATH, bundle_option, run

CHUNK = 65_536
"""Number of texts per call of the classifier alone."""
SAMPLES = 60
"""Number of memory samples in the result."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of the job's process."""

    samples: list[tuple[float, float]]
    """Seconds since the start, MB."""
    peak_mb: float
    at_quarter_mb: float
    """After a quarter of the time, when the model is loaded."""
    at_end_mb: float
    """Mean of the last tenth of the time."""


class Seconds(NamedTuple):
    """Elapsed and CPU time."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        """Read the clocks of this process."""
        return cls(time.perf_counter(), time.process_time())


class Result(scripts.Result, frozen=True, kw_only=True):
    """Time and memory of the job, beside the classifier alone (``bare``)."""

    bundle: str
    rows: int
    job_s: float
    job_texts_per_s: float
    bare_s: float
    bare_texts_per_s: float
    ratio: float
    """Texts/s of the job over those of the classifier alone."""
    job_cpu_s: float
    bare_cpu_s: float
    cpu_ratio: float
    """The same in CPU seconds of all threads."""
    load: float
    """Mean load of the last 15 minutes; above the number of cores, other programs used the machine."""
    memory: Memory


@click.command()
@bundle_option
@click.option("--rows", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("-o", "--output", type=PATH, help="JSON file to write.")
def main(*, bundle: Path, rows: int, output: Path | None) -> None:
    """Run the job and the classifier alone."""
    manifest = Bundle.open(bundle).manifest
    task = next(name for name, part in manifest.tasks.items() if part.kind == "sequence")
    with tempfile.TemporaryDirectory(prefix="mtllm-edge-long-") as name:
        folder = Path(name)
        texts = list(short_texts(rows))
        write_input(folder / "in.csv", texts)
        before = bare_seconds(bundle, task, texts[: rows // 2])
        job, samples = run_job(bundle, task, folder)
        after = bare_seconds(bundle, task, texts[rows // 2 :])
        bare = Seconds(before.wall + after.wall, before.cpu + after.cpu)
        check(folder / "out.csv", rows)
    result = Result(
        bundle=manifest.name,
        rows=rows,
        job_s=round(job.wall, 1),
        job_texts_per_s=round(rows / job.wall, 1),
        bare_s=round(bare.wall, 1),
        bare_texts_per_s=round(rows / bare.wall, 1),
        ratio=round(bare.wall / job.wall, 3),
        job_cpu_s=round(job.cpu, 1),
        bare_cpu_s=round(bare.cpu, 1),
        cpu_ratio=round(bare.cpu / job.cpu, 3),
        load=round(os.getloadavg()[2], 1),
        memory=summarize_memory(samples),
    )
    if output is not None:
        scripts.write_json(result, output)
    scripts.print_json(result)


def short_texts(count: int) -> Iterator[str]:
    """Yield unique texts of four to nine words."""
    with DEMO_TOPICS.open(encoding="utf-8", newline="") as file:
        words = [row["text"].split() for row in csv.DictReader(file)]
    rng = random.Random(0)
    for number in range(count):
        sentence = rng.choice(words)
        start = rng.randrange(max(1, len(sentence) - 8))
        yield f"{' '.join(sentence[start : start + rng.randint(3, 8)])} {number}"


def write_input(path: Path, texts: Sequence[str]) -> None:
    """Write the job's csv."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))


def bare_seconds(bundle: Path, task: str, texts: Sequence[str]) -> Seconds:
    """Time loading the model and classifying texts; loading counts half, as this is called twice."""
    started = Seconds.now()
    with Classifier.load(bundle, task=task) as classifier:
        loaded = Seconds.now()
        for start in range(0, len(texts), CHUNK):
            classifier.classify(texts[start : start + CHUNK])
        ended = Seconds.now()
    return Seconds(*(end - (begin + load) / 2 for begin, load, end in zip(started, loaded, ended, strict=True)))


def run_job(bundle: Path, task: str, folder: Path) -> tuple[Seconds, list[tuple[float, float]]]:
    """Run the command; returns its time and its memory over time."""
    arguments = ("classify", "-b", bundle, "-t", task, folder / "in.csv", "-o", folder / "out.csv")
    program = "import sys; from mtllm_edge.cli.main import main; sys.exit(main())"
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)])
    samples = []
    try:
        while process.poll() is None:
            if (resident := resident_mb(process.pid)) is not None:
                samples.append((round(time.perf_counter() - started, 1), resident))
            time.sleep(0.2)
    finally:
        process.kill()
    if process.returncode != 0:
        raise click.ClickException(f"the job ended with {process.returncode}")
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Seconds(wall, cpu), samples


def resident_mb(process: int) -> float | None:
    """Return the resident memory of a process in MB; None if it has ended, or is unknown."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return round(int(lines[0].split()[1]) / 1024, 1) if lines else None


def summarize_memory(samples: Sequence[tuple[float, float]]) -> Memory:
    """Summarize memory samples."""
    sizes = [size for _, size in samples]
    last = sizes[-max(1, len(sizes) // 10) :]
    return Memory(
        samples=[*samples[:: max(1, len(samples) // SAMPLES)]],
        peak_mb=max(sizes),
        at_quarter_mb=sizes[len(sizes) // 4],
        at_end_mb=round(sum(last) / len(last), 1),
    )


def check(output: Path, rows: int) -> None:
    """Check that the output has every row once, in order."""
    with output.open(encoding="utf-8", newline="") as file:
        ids = [int(row["id"]) for row in csv.DictReader(file)]
    if ids != list(range(rows)):
        raise click.ClickException("the output has missing or repeated rows")
    console.note(f"the output has all {rows:,} rows, once and in order")


if __name__ == "__main__":
    run(main)
