"""A long batch job from end to end: is its memory flat, and what does it cost beside the bare classifier?

Short rows with the words of the demo's sentences, no two alike, go through `mtllm-edge classify` from a csv to a csv;
its memory is sampled all the while. The same texts go through `Classifier.classify` in this process, half of them
before and half after the job, for machines whose speed wanders. Both figures include the loading of the model. The
seconds of CPU are those to go by where others use the machine, too. The last line of stdout is the result as JSON,
which is also written.
"""

from __future__ import annotations

import csv
import datetime
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
from mtllm_edge.backends.cpu import available_cores, read_cpu

HERE = Path(__file__).parent
PIECE = 65_536
"""Texts of one call of the bare classifier."""
SAMPLES = 60
"""Points of memory that are kept."""
_PATH = click.Path(path_type=Path)


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of the job's process."""

    samples: list[tuple[float, float]]
    """Seconds since the start, and MB."""
    peak_mb: float
    at_quarter_mb: float
    """After a quarter of the time; the model is loaded then."""
    at_end_mb: float
    """The mean of the last tenth of the time."""


class Seconds(NamedTuple):
    """What something takes."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        """The clocks of this process."""
        return cls(time.perf_counter(), time.process_time())


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is written."""

    date: str
    cpu: str
    cores: int
    bundle: str
    rows: int
    job_s: float
    job_texts_per_s: float
    bare_s: float
    bare_texts_per_s: float
    ratio: float
    """Texts/s of the job over those of the bare classifier."""
    job_cpu_s: float
    bare_cpu_s: float
    cpu_ratio: float
    """The same by the seconds of CPU, of all threads."""
    load: float
    """The system's mean load in the last 15 minutes; more than there are cores tells that others used the machine."""
    memory: Memory


@click.command()
@click.option("--bundle", type=_PATH, default=HERE.parent / "build/reference", help="`make demo` makes the default.")
@click.option("--rows", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("-o", "--output", type=_PATH, help="Write this file, too.")
def main(*, bundle: Path, rows: int, output: Path | None) -> None:
    """Run the job, and the bare classifier beside it."""
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
        date=datetime.date.today().isoformat(),
        cpu=read_cpu().model,
        cores=available_cores(),
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
        memory=summarised(samples),
    )
    text = msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    click.echo(msgspec.json.encode(result).decode())


def short_texts(count: int) -> Iterator[str]:
    """Texts of four to nine words, no two alike."""
    with (HERE / "demo_topics.csv").open(encoding="utf-8", newline="") as file:
        words = [row["text"].split() for row in csv.DictReader(file)]
    rng = random.Random(0)
    for number in range(count):
        own = rng.choice(words)
        start = rng.randrange(max(1, len(own) - 8))
        yield f"{' '.join(own[start : start + rng.randint(3, 8)])} {number}"


def write_input(path: Path, texts: Sequence[str]) -> None:
    """Write the job's csv."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))


def bare_seconds(bundle: Path, task: str, texts: Sequence[str]) -> Seconds:
    """What it takes to load the model and classify texts with nothing around it; half of the loading counts."""
    started = Seconds.now()
    with Classifier.load(bundle, task=task) as classifier:
        loaded = Seconds.now()
        for start in range(0, len(texts), PIECE):
            classifier.classify(texts[start : start + PIECE])
        ended = Seconds.now()
    return Seconds(*(end - (begin + load) / 2 for begin, load, end in zip(started, loaded, ended, strict=True)))


def run_job(bundle: Path, task: str, folder: Path) -> tuple[Seconds, list[tuple[float, float]]]:
    """What the whole command takes, and its memory over time."""
    arguments = ("classify", "-b", bundle, "-t", task, folder / "in.csv", "-o", folder / "out.csv")
    program = "import sys; from mtllm_edge.cli.main import main; sys.exit(main())"
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)])
    samples = []
    while process.poll() is None:
        if (resident := resident_mb(process.pid)) is not None:
            samples.append((round(time.perf_counter() - started, 1), resident))
        time.sleep(0.2)
    if process.returncode != 0:
        raise click.ClickException(f"the job ended with {process.returncode}")
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Seconds(wall, cpu), samples


def resident_mb(process: int) -> float | None:
    """Resident memory of a process; None where it has just ended, or the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return round(int(lines[0].split()[1]) / 1024, 1) if lines else None


def summarised(samples: Sequence[tuple[float, float]]) -> Memory:
    """Some of many samples."""
    sizes = [size for _, size in samples]
    last = sizes[-max(1, len(sizes) // 10) :]
    return Memory(
        samples=[*samples[:: max(1, len(samples) // SAMPLES)]],
        peak_mb=max(sizes),
        at_quarter_mb=sizes[len(sizes) // 4],
        at_end_mb=round(sum(last) / len(last), 1),
    )


def check(output: Path, rows: int) -> None:
    """Every row must be there once, in order."""
    with output.open(encoding="utf-8", newline="") as file:
        found = [int(row["id"]) for row in csv.DictReader(file)]
    if found != list(range(rows)):
        raise click.ClickException("the output lacks rows, or has some twice")
    console.note(f"all {rows:,} rows are there, once and in order")


if __name__ == "__main__":
    main()
