"""Many clients at once against `mtllm-edge serve`, every answer compared with that of one call by itself.

Texts of the demo's sentences are first computed one by one in this process. Then a server is started on loopback, and
clients ask it, each the next question as soon as the last is answered: mostly single texts, some small batches, some
embeddings. An answer is wrong where its label is another (unless the two labels are nearer than the tolerance in the
single call, too), a probability is off by more than the tolerance, the number of tokens is another, or the vector is
nearer to that of another text, or its cosine with that of the single call below 0.99; it is lost where there is none.
Engines of 8 bits round a text in a batch otherwise than alone: the tolerance is twice what that does to a probability
without any server, all texts in one call, and what tells that answers were mixed up is tokens and vectors. Writes
load_test.json and load_test.md; the last line of stdout is the result as JSON. The exit code is 1 where an answer was
wrong or lost.
"""

from __future__ import annotations

import csv
import datetime
import http.client
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge import Bundle, Classifier, Embedder, console
from mtllm_edge.backends.cpu import available_cores, read_cpu

HERE = Path(__file__).parent
_PATH = click.Path(path_type=Path)
_START_S, _ANSWER_S, _STOP_S = 300, 300, 60
_MIX = {"single": 70, "batch": 20, "embeddings": 10}
"""Kinds of requests in per cent."""
_LEAST_COSINE, _LEAST_TOLERANCE = 0.99, 0.02
_BATCH, _EMBEDDINGS = (2, 16), (1, 4)
"""Fewest and most texts in such a request."""


@dataclass(frozen=True)
class Single:
    """What calls one by one gave for a text."""

    probabilities: dict[str, dict[str, float]]
    """By task."""
    tokens: int
    direction_E: NDArray[np.float32]
    """Its vector, at unit length."""


@dataclass
class Tally:
    """What one client saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in _MIX})
    statuses: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    largest_difference: float = 0.0
    smallest_cosine: float = 1.0


class Latency(msgspec.Struct, frozen=True):
    """Of answered requests, in ms."""

    requests: int
    p50: float
    p90: float
    p99: float
    max: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is written."""

    date: str
    cpu: str
    cores: int
    load_before: float
    """Processes that wanted a core in the minute before: other work beside the test."""
    bundle: str
    clients: int
    seconds: float
    """From the first request to the last answer."""
    distinct_texts: int
    requests: int
    texts: int
    texts_per_s: float
    one_by_one_texts_per_s: float
    """Of the calls beforehand, single texts in Python without a server."""
    latency_ms: dict[str, Latency]
    """By kind of request."""
    statuses: dict[str, int]
    wrong: int
    lost: int
    tolerance: float
    offline_probability_difference: float
    """Without a server: the largest between a text alone and in one call with all others."""
    largest_probability_difference: float
    smallest_cosine: float
    mean_texts_per_batch: float
    """Of the server's engine, by its own figures."""
    server_exit_code: int
    examples: list[str]
    """Of what was wrong or lost, at most ten."""


@click.command()
@click.option("--bundle", type=_PATH, default=HERE.parent / "build/reference", help="`make demo` makes the default.")
@click.option("--clients", type=click.IntRange(1, 512), default=64, show_default=True, metavar="N")
@click.option("--minutes", type=click.FloatRange(0.01, 60), default=10, show_default=True, metavar="M")
@click.option(
    "--texts", type=click.IntRange(1, 940), default=480, show_default=True, metavar="N", help="Different ones."
)
@click.option("-o", "--output", "out", type=_PATH, default=HERE / "results", show_default="results", help="Folder.")
def main(*, bundle: Path, clients: int, minutes: float, texts: int, out: Path) -> None:
    """Measure, and write load_test.json and load_test.md."""
    load = os.getloadavg()[0]
    opened = Bundle.open(bundle)
    sentences = read_sentences(HERE / "demo_topics.csv", texts)
    console.note(f"{console.count(len(sentences), 'text')} one by one")
    singles, rate, offline = one_by_one(opened, sentences)
    tolerance = max(_LEAST_TOLERANCE, 2 * offline)
    tallies = [Tally() for _ in range(clients)]
    with server(bundle) as (url, process):
        started = time.perf_counter()
        asker = Asker(url, opened, singles, tolerance, started + 60 * minutes)
        asker.ask_all(tallies)
        seconds = time.perf_counter() - started
        batch_texts = batch_size(url)
        process.send_signal(signal.SIGTERM)
        code = process.wait(_STOP_S)
    result = summarise(tallies, seconds, load, tolerance, opened, len(sentences), rate, offline, batch_texts, code)
    out.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    (out / "load_test.json").write_text(text + "\n", encoding="utf-8")
    (out / "load_test.md").write_text(to_markdown(result), encoding="utf-8")
    click.echo(msgspec.json.encode(result).decode())
    sys.exit(1 if result.wrong or result.lost or code else 0)


def read_sentences(path: Path, count: int) -> list[str]:
    """So many different sentences, evenly from all of the file."""
    with path.open(encoding="utf-8", newline="") as file:
        found = list(dict.fromkeys(row["text"] for row in csv.DictReader(file)))
    return [found[index * len(found) // count] for index in range(count)] if count < len(found) else found


def one_by_one(bundle: Bundle, texts: Sequence[str]) -> tuple[dict[str, Single], float, float]:
    """What a call with each text alone gives, such calls per second, and by how much one call with all differs."""
    tasks = list(bundle.manifest.tasks)
    singles = {}
    with Embedder.load(bundle) as embedder:
        classifier = Classifier(embedder)
        classifier.classify(texts[:1], task=tasks[0])  # the first call is slower than all others
        started = time.perf_counter()
        for text in texts:
            found = {task: classifier.classify([text], task=task)[0] for task in tasks}
            probabilities = {task: found[task].probabilities for task in tasks}
            singles[text] = Single(probabilities, found[tasks[0]].tokens, unit(embedder.embed([text])[0]))
        seconds = time.perf_counter() - started
        offline = max(
            difference(one.probabilities, singles[text].probabilities[task])
            for task in tasks
            for text, one in zip(texts, classifier.classify(texts, task=task), strict=True)
        )
    return singles, len(texts) * (len(tasks) + 1) / seconds, offline


def unit(vector_E: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector at unit length."""
    return vector_E / np.float32(np.linalg.norm(vector_E))


def difference(found: dict[str, float], expected: dict[str, float]) -> float:
    """The largest between the probabilities of the same label."""
    return max(abs(found[label] - expected[label]) for label in expected)


@contextmanager
def server(bundle: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on a free port of loopback, with the model loaded."""
    command = [sys.executable, "-m", "mtllm_edge", "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(_START_S, process.kill)
        watchdog.start()
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if line.startswith("ready"):
                    break
            watchdog.cancel()
            found = re.search(r"http://\S+", "".join(lines))
            if process.poll() is not None or found is None:
                sys.exit(f"the server did not start: {''.join(lines)}")
            threading.Thread(target=lambda: sys.stderr.writelines(process.stderr or ()), daemon=True).start()
            yield found[0], process
        finally:
            watchdog.cancel()
            process.kill()


class Asker:
    """The clients."""

    def __init__(self, url: str, bundle: Bundle, singles: dict[str, Single], tolerance: float, until: float) -> None:
        """Ask a server at `url` until a time of `time.perf_counter`."""
        address = urlsplit(url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self._name, self._tasks = bundle.manifest.name, list(bundle.manifest.tasks)
        self._singles, self._texts = singles, list(singles)
        self._directions_NE = np.stack([single.direction_E for single in singles.values()])
        self._tolerance, self._until = tolerance, until

    def ask_all(self, tallies: Sequence[Tally]) -> None:
        """A client for each tally, all at once, to the end of the time."""
        threads = [threading.Thread(target=self._client, args=item) for item in enumerate(tallies)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, seed: int, tally: Tally) -> None:
        rng = random.Random(seed)
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_ANSWER_S)
        while time.perf_counter() < self._until:
            (kind,) = rng.choices(list(_MIX), list(_MIX.values()))
            count = {"single": 1, "batch": rng.randint(*_BATCH), "embeddings": rng.randint(*_EMBEDDINGS)}[kind]
            texts = [rng.choice(self._texts) for _ in range(count)]
            try:
                self._ask(connection, kind, texts, rng.choice(self._tasks), tally)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                tally.lost.append(f"{kind} of {count}: {type(error).__name__}: {error}")
                connection.close()
        connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, kind: str, texts: list[str], task: str, tally: Tally
    ) -> None:
        path, body = (
            ("/v1/embeddings", {"input": texts, "model": self._name})
            if kind == "embeddings"
            else ("/classify", {"texts": texts, "task": task})
        )
        started = time.perf_counter()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        seconds = time.perf_counter() - started
        tally.statuses[str(response.status)] += 1
        if response.status == 429:  # a refusal is an answer; it says when to come again
            time.sleep(float(response.headers["Retry-After"]))
            return
        if response.status != 200:
            tally.lost.append(f"{kind} of {len(texts)}: status {response.status}: {content[:200]!r}")
            return
        tally.seconds[kind].append(seconds)
        tally.texts += len(texts)
        answer = json.loads(content)
        found = answer["data"] if kind == "embeddings" else answer["predictions"]
        if len(found) != len(texts):
            tally.lost.append(f"{kind} of {len(texts)}: {len(found)} answers")
        for text, one in zip(texts, found, strict=False):
            fault = (
                self._vector_fault(text, one, tally) if kind == "embeddings" else self._fault(text, task, one, tally)
            )
            if fault:
                tally.wrong.append(f"{kind} of {len(texts)}, {text[:40]!r}: {fault}")

    def _fault(self, text: str, task: str, found: dict[str, Any], tally: Tally) -> str | None:
        expected = self._singles[text].probabilities[task]
        if set(found["probabilities"]) != set(expected):
            return f"the labels are {', '.join(found['probabilities'])}"
        if found["tokens"] != self._singles[text].tokens:
            return f"it has {found['tokens']} tokens instead of {self._singles[text].tokens}"
        off = difference(found["probabilities"], expected)
        tally.largest_difference = max(tally.largest_difference, off)
        best = max(expected, key=expected.__getitem__)
        if off > self._tolerance:
            return f"{task}: probabilities are off by {off:.4f}"
        if found["label"] != best and expected[best] - expected[found["label"]] > self._tolerance:
            return f"{task}: {found['label']} instead of {best}"
        return None

    def _vector_fault(self, text: str, found: dict[str, Any], tally: Tally) -> str | None:
        vector_E = np.array(found["embedding"], np.float32)
        if vector_E.shape != self._directions_NE.shape[1:]:
            return f"the vector has the shape {vector_E.shape}"
        cosines_N = self._directions_NE @ unit(vector_E)
        nearest, cosine = self._texts[int(cosines_N.argmax())], float(cosines_N[self._texts.index(text)])
        tally.smallest_cosine = min(tally.smallest_cosine, cosine)
        if nearest != text:
            return f"the vector is nearer to that of {nearest[:40]!r}"
        return None if cosine >= _LEAST_COSINE else f"the cosine is {cosine:.4f}"


def batch_size(url: str) -> float:
    """Mean number of texts that the server's engine read together."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=_ANSWER_S)
    connection.request("GET", "/metrics")
    figures = connection.getresponse().read().decode()
    connection.close()
    total, count = (
        float(re.findall(rf"^mtllm_edge_batch_texts_{name} (\S+)$", figures, re.MULTILINE)[0])
        for name in ("sum", "count")
    )
    return total / max(count, 1)


def latency(seconds: Sequence[float]) -> Latency:
    """Percentiles of times."""
    if not seconds:
        return Latency(0, 0, 0, 0, 0)
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)

    return Latency(len(ordered), round(1000 * statistics.median(ordered), 1), at(0.9), at(0.99), at(1))


def summarise(
    tallies: Sequence[Tally],
    seconds: float,
    load: float,
    tolerance: float,
    bundle: Bundle,
    distinct: int,
    rate: float,
    offline: float,
    batch_texts: float,
    code: int,
) -> Result:
    """All clients together."""
    by_kind = {kind: [second for tally in tallies for second in tally.seconds[kind]] for kind in _MIX}
    texts = sum(tally.texts for tally in tallies)
    wrong, lost = ([line for tally in tallies for line in getattr(tally, name)] for name in ("wrong", "lost"))
    statuses = sum((tally.statuses for tally in tallies), Counter[str]())
    return Result(
        date=datetime.date.today().isoformat(),
        cpu=read_cpu().model,
        cores=available_cores(),
        load_before=round(load, 1),
        bundle=bundle.manifest.name,
        clients=len(tallies),
        seconds=round(seconds, 1),
        distinct_texts=distinct,
        requests=sum(statuses.values()),
        texts=texts,
        texts_per_s=round(texts / seconds, 1),
        one_by_one_texts_per_s=round(rate, 1),
        latency_ms={kind: latency(by_kind[kind]) for kind in _MIX}
        | {"all": latency([*itertools.chain(*by_kind.values())])},
        statuses=dict(sorted(statuses.items())),
        wrong=len(wrong),
        lost=len(lost),
        tolerance=round(tolerance, 5),
        offline_probability_difference=round(offline, 5),
        largest_probability_difference=round(max(tally.largest_difference for tally in tallies), 5),
        smallest_cosine=round(min(tally.smallest_cosine for tally in tallies), 5),
        mean_texts_per_batch=round(batch_texts, 1),
        server_exit_code=code,
        examples=[*wrong, *lost][:10],
    )


def to_markdown(result: Result) -> str:
    """The result for people."""
    lines = [
        "# Load test",
        "",
        f"{result.clients} clients on loopback for {result.seconds:.0f} s, bundle `{result.bundle}`, "
        f"{result.cpu}, {result.cores} cores shared by server and clients, {result.date}. "
        f"Other work before the test: a load of {result.load_before}. Made by "
        "`python benchmarks/load_test.py`.",
        "",
        "| requests | number | p50 ms | p90 ms | p99 ms | max ms |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {found.requests} | {found.p50:.0f} | {found.p90:.0f} | {found.p99:.0f} | {found.max:.0f} |"
        for kind, found in result.latency_ms.items()
    ]
    statuses = ", ".join(f"{number} × {status}" for status, number in result.statuses.items())
    lines += [
        "",
        f"- {result.texts} texts in {result.requests} requests, {result.texts_per_s} texts/s "
        f"(one by one in Python, without a server: {result.one_by_one_texts_per_s}); "
        f"the engine read {result.mean_texts_per_batch} texts at a time on average.",
        f"- Statuses: {statuses}. The server's exit code after SIGTERM: {result.server_exit_code}.",
        f"- **{result.wrong} wrong, {result.lost} lost**, each answer compared with a call of that text alone: "
        f"probabilities differ by {result.largest_probability_difference} at most (tolerance {result.tolerance}; "
        f"without a server, in one call with all texts, by {result.offline_probability_difference}), "
        f"the cosine of vectors is {result.smallest_cosine} at least, and no other text's is nearer.",
    ]
    lines += [f"    - {example}" for example in result.examples]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
