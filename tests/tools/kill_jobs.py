"""Kill a batch job at random moments, and check that the output has every row exactly once, in order.

Real `mtllm-edge classify` processes work on a csv with bad rows and repeated texts, each of them killed (SIGKILL) at a
random moment: 70 % after the run has stored a chunk, 20 % while it writes the output, 10 % before. After one to three
kills a job may end, and its output is compared with that of an undisturbed job. A chunk has 256 texts, so that a short
job has many. Run it from the root of the repository: `python -m tests.tools.kill_jobs`. The last line of stdout is the
result as JSON, which is also written to a file.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec

from mtllm_edge.jobs.journal import JOURNAL, RESULT, Journal
from tests.fixtures.tiny_bundle import make_tiny_bundle

PATIENCE = 120
"""Seconds until a wait counts as a failure."""
BAD_EVERY = 997
"""Period of the rows with a cell too many."""
REPEATED_EVERY = 10
WORDS = ("good", "bad", "team", "match", "hotel", "science", "the", "is", "не", "और", "中国", "travel")
START = """
import sys
from mtllm_edge.cli.main import main
from mtllm_edge.jobs import runner
runner.MAX_TEXTS = runner.MIN_TEXTS
sys.exit(main())
"""


@dataclass
class Harness:
    """A job in its own folder."""

    folder: Path
    bundle: Path
    rows: int
    seed: int
    expected: list[list[str]] = field(default_factory=list)
    """Rows of the output of an undisturbed job."""
    starting_s: float = 0.0
    """Seconds until its first chunk is stored."""
    computing_s: float = 0.0
    """From then on until it writes the output."""
    writing_s: float = 0.0
    """From then on until the process ends."""

    def __post_init__(self) -> None:
        with contextlib.closing(Journal(self.folder)):
            self.empty_size = (self.folder / JOURNAL).stat().st_size
        (self.folder / JOURNAL).unlink()
        self.random = random.Random(self.seed)
        write_input(self.folder / "in.csv", self.rows, self.random)
        moments = [time.monotonic()]
        process = self.start()
        self.wait_for_change(process, JOURNAL, None)
        moments.append(time.monotonic())
        self.wait_for_change(process, RESULT, None)
        moments.append(time.monotonic())
        errors = self.end(process)
        assert process.returncode == 0, errors
        moments.append(time.monotonic())
        self.starting_s, self.computing_s, self.writing_s = (b - a for a, b in itertools.pairwise(moments))
        self.expected = read_csv(self.output)
        bad = {number for number in range(self.rows) if number % BAD_EVERY == BAD_EVERY - 1}
        assert [int(row[0]) for row in self.expected[1:]] == [n for n in range(self.rows) if n not in bad]
        assert [row[1] for row in read_csv(self.rejected)[1:]] == [str(number + 2) for number in sorted(bad)]
        self.output.unlink()
        self.rejected.unlink()

    @property
    def output(self) -> Path:
        return self.folder / "out.csv"

    @property
    def rejected(self) -> Path:
        return self.folder / "out.rejected.csv"

    @property
    def folder_of_job(self) -> Path:
        return self.folder / ".out.csv.job"

    def start(self) -> subprocess.Popen[bytes]:
        arguments = ("classify", "-b", self.bundle, "-t", "topic", self.folder / "in.csv", "-o", self.output)
        command = [sys.executable, "-c", START, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

    def end(self, process: subprocess.Popen[bytes]) -> str:
        _, errors = process.communicate(timeout=PATIENCE)
        return errors.decode()

    def state(self, name: str) -> int | None:
        """Return the size of the journal, or the newest modification time of the output; None before the first row."""
        try:
            if name == JOURNAL:
                size = (self.folder_of_job / JOURNAL).stat().st_size
                return size if size > self.empty_size else None
            return max((file.stat().st_mtime_ns for file in self.folder_of_job.glob(f"*{RESULT}*")), default=None)
        except FileNotFoundError:
            return None

    def wait_for_change(self, process: subprocess.Popen[bytes], name: str, before: int | None) -> None:
        """Wait until a file of the journal changes or the process ends."""
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and self.state(name) in (before, None):
            assert time.monotonic() < deadline, f"{name} did not change"
            time.sleep(0.001)

    def kill(self) -> str:
        """Start the job, kill it, and return the phase in which it was."""
        name, longest = self.random.choices(
            ((None, self.starting_s), (JOURNAL, self.computing_s), (RESULT, self.writing_s)), (1, 7, 2)
        )[0]
        before = self.state(name or JOURNAL)
        process = self.start()
        if name is not None:
            self.wait_for_change(process, name, before)
        time.sleep(self.random.uniform(0, longest))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        errors = self.end(process)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, errors
            return "ended before"
        if self.output.exists():
            return "tidying up"
        if not (self.folder_of_job / JOURNAL).exists():
            return "starting"
        with contextlib.closing(Journal(self.folder_of_job)) as journal:
            if journal.complete:
                return "output complete"
            if self.state(RESULT):
                return "writing"
            return "computing" if journal.progress.read else "starting"

    def check(self) -> int:
        """Run the job to its end, compare its output, and return the number of rows it resumed after."""
        process = self.start()
        errors = self.end(process)
        finished = "exists; add --force" in errors and process.returncode == 2
        assert process.returncode == 0 or finished, errors
        rows = read_csv(self.output)
        assert [row[0] for row in rows] == [row[0] for row in self.expected], "rows are lost, repeated, or out of order"
        tied = 0  # the last digits depend on the batch, and so does the label if two probabilities are nearly equal
        for row, expected in zip(rows[1:], self.expected[1:], strict=True):
            assert row[:2] == expected[:2], (row, expected)
            assert abs(float(row[3]) - float(expected[3])) < 1e-3, (row, expected)
            tied += row[2] != expected[2]
        assert tied < 0.002 * len(rows), f"{tied} rows have another label"
        bad = [str(number + 2) for number in range(BAD_EVERY - 1, self.rows, BAD_EVERY)]
        assert [row[1] for row in read_csv(self.rejected)[1:]] == bad, "rejected rows are lost or repeated"
        assert sorted(path.name for path in self.folder.iterdir()) == ["in.csv", "out.csv", "out.rejected.csv"]
        self.output.unlink()
        self.rejected.unlink()
        notes = [line for line in errors.splitlines() if line.startswith("going on after ")]
        return int(notes[0].split()[3].replace(",", "")) if notes else 0


def write_input(path: Path, rows: int, rng: random.Random) -> None:
    """Write a csv with the columns id and text, some repeated texts, and some rows with a cell too many."""
    texts: list[str] = []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for number in range(rows):
            repeated = texts and number % REPEATED_EVERY == 0
            texts.append(rng.choice(texts) if repeated else " ".join(rng.choices(WORDS, k=5)) + f" {number}")
            extra = ["one too many"] if number % BAD_EVERY == BAD_EVERY - 1 else []
            writer.writerow([number, texts[-1], *extra])


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def kill_jobs(harness: Harness, kills: int) -> tuple[Counter[str], list[int]]:
    """Kill jobs; return the number of kills by phase, and the rows after which each last run resumed."""
    moments: Counter[str] = Counter()
    stored_rows = []
    while moments.total() - moments["ended before"] < kills:
        for _ in range(harness.random.randint(1, 3)):
            moment = harness.kill()
            moments[moment] += 1
            if moment in ("ended before", "tidying up"):
                break
        stored_rows.append(harness.check())
    return moments, stored_rows


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the test."""

    date: str
    seed: int
    rows: int
    undisturbed_s: float
    """Duration of an undisturbed job."""
    kills: int
    killed_while: dict[str, int]
    jobs: int
    jobs_with_every_row_once_and_in_order: int
    rows_kept: list[int]
    """Rows in the journal at the start of the last run of each job."""


@click.command()
@click.option("--kills", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--rows", type=click.IntRange(min=1000), default=6000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("benchmarks/results/kill_test.json"))
def main(kills: int, rows: int, seed: int, output: Path) -> None:
    """Kill jobs at random moments, and write the result."""
    folder = Path(tempfile.mkdtemp(prefix="mtllm-edge-kills-"))
    try:
        (folder / "job").mkdir()
        harness = Harness(folder / "job", make_tiny_bundle(folder / "bundle"), rows, seed)
        moments, stored_rows = kill_jobs(harness, kills)
    finally:
        shutil.rmtree(folder)
    ended = moments.pop("ended before", 0)
    result = Result(
        date=datetime.date.today().isoformat(),
        seed=seed,
        rows=rows,
        undisturbed_s=round(harness.starting_s + harness.computing_s + harness.writing_s, 2),
        kills=moments.total(),
        killed_while=dict(moments),
        jobs=len(stored_rows),
        jobs_with_every_row_once_and_in_order=len(stored_rows),
        rows_kept=stored_rows,
    )
    click.echo(f"{ended} jobs ended before their kill", err=True)
    output.write_text(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n", encoding="utf-8")
    click.echo(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main()
