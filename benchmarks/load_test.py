"""Load test of `mtllm-edge serve` that compares every result with that of the same text alone.

First each text is computed alone in this process. Then a server is started on loopback, and clients send one request
after the other: mostly single texts, some small batches, some embeddings. A classification is wrong if its number of
tokens differs, a probability is off by more than the tolerance, or the label differs (unless both labels are closer
than the tolerance alone, too). An embedding is wrong if another text's reference is closer, or its cosine with its own
reference is below 0.99. A request without a result is lost.

8-bit engines round a text in a batch differently than alone. The tolerance is twice the largest difference that one
batch of all texts makes without a server; tokens and embeddings detect results of the wrong text.

Writes load_test.json and load_test.md; the last line of stdout is the result as JSON. The exit code is 1 if a result
was wrong or lost.
"""

from __future__ import annotations

import csv
import datetime
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from mtllm_edge_bench.report.load_test import LoadTestResult, latency, write_load_test

HERE = Path(__file__).parent
_PATH = click.Path(path_type=Path)
_START_S, _RESPONSE_S, _STOP_S = 300, 300, 60
_KINDS = {"single": 70, "batch": 20, "embeddings": 10}
"""Kind of request -> share in percent."""
_TEXTS_PER_REQUEST = {"single": (1, 1), "batch": (2, 16), "embeddings": (1, 4)}
"""Kind of request -> minimum and maximum number of texts."""
_MIN_COSINE, _MIN_TOLERANCE = 0.99, 0.02


@dataclass(frozen=True)
class Reference:
    """Results of a text that is computed alone."""

    probabilities: dict[str, dict[str, float]]
    """Task -> label -> probability."""
    tokens: int
    direction_E: NDArray[np.float32]
    """Normalized embedding."""


@dataclass(frozen=True)
class References:
    """Results of all texts that are computed alone."""

    by_text: dict[str, Reference]
    texts_per_s: float
    batch_difference: float
    """Largest difference of a probability in one batch of all texts."""

    @property
    def tolerance(self) -> float:
        """Largest difference of a probability that is accepted."""
        return max(_MIN_TOLERANCE, 2 * self.batch_difference)


@dataclass
class ClientLog:
    """Results of one client."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in _KINDS})
    statuses: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    max_difference: float = 0.0
    min_cosine: float = 1.0


@click.command()
@click.option("--bundle", type=_PATH, default=HERE.parent / "build/reference", help="By default that of `make demo`.")
@click.option("--clients", type=click.IntRange(1, 512), default=64, show_default=True, metavar="N")
@click.option("--minutes", type=click.FloatRange(0.01, 60), default=10, show_default=True, metavar="M")
@click.option(
    "--texts", type=click.IntRange(1, 940), default=480, show_default=True, metavar="N", help="Distinct texts."
)
@click.option("-o", "--output", type=_PATH, default=HERE / "results", show_default="results", help="Folder.")
def main(*, bundle: Path, clients: int, minutes: float, texts: int, output: Path) -> None:
    """Run the load test, and write load_test.json and load_test.md."""
    load_before = os.getloadavg()[0]
    opened = Bundle.open(bundle)
    sentences = read_sentences(HERE / "demo_topics.csv", texts)
    console.note(f"{console.count(len(sentences), 'text')} one by one")
    references = compute_references(opened, sentences)
    with run_server(bundle) as (url, process):
        started = time.perf_counter()
        client = Client(url, opened, references, deadline=started + 60 * minutes)
        with ThreadPoolExecutor(clients) as threads:
            logs = list(threads.map(client.run, range(clients)))
        seconds = time.perf_counter() - started
        mean_texts_per_batch = read_mean_texts_per_batch(url)
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(_STOP_S)
    log = merge(logs)
    result = LoadTestResult(
        date=datetime.date.today().isoformat(),
        cpu=read_cpu().model,
        cores=available_cores(),
        load_before=round(load_before, 1),
        bundle=opened.manifest.name,
        clients=clients,
        seconds=round(seconds, 1),
        distinct_texts=len(sentences),
        requests=log.statuses.total(),
        texts=log.texts,
        texts_per_s=round(log.texts / seconds, 1),
        one_by_one_texts_per_s=round(references.texts_per_s, 1),
        latency_ms={kind: latency(values) for kind, values in log.seconds.items()},
        statuses=dict(sorted(log.statuses.items())),
        wrong=len(log.wrong),
        lost=len(log.lost),
        tolerance=round(references.tolerance, 5),
        offline_probability_difference=round(references.batch_difference, 5),
        largest_probability_difference=round(log.max_difference, 5),
        smallest_cosine=round(log.min_cosine, 5),
        mean_texts_per_batch=round(mean_texts_per_batch, 1),
        server_exit_code=exit_code,
        examples=[*log.wrong, *log.lost][:10],
    )
    write_load_test(result, output)
    click.echo(msgspec.json.encode(result).decode())
    sys.exit(1 if result.wrong or result.lost or exit_code else 0)


def merge(logs: Sequence[ClientLog]) -> ClientLog:
    """Return the results of all clients, with the durations of all requests under ``all``."""
    merged = ClientLog()
    merged.seconds["all"] = []
    for log in logs:
        for kind, seconds in log.seconds.items():
            merged.seconds[kind] += seconds
            merged.seconds["all"] += seconds
        merged.statuses += log.statuses
        merged.texts += log.texts
        merged.wrong += log.wrong
        merged.lost += log.lost
        merged.max_difference = max(merged.max_difference, log.max_difference)
        merged.min_cosine = min(merged.min_cosine, log.min_cosine)
    return merged


def read_sentences(path: Path, count: int) -> list[str]:
    """Return distinct sentences, evenly spaced over the file."""
    with path.open(encoding="utf-8", newline="") as file:
        sentences = list(dict.fromkeys(row["text"] for row in csv.DictReader(file)))
    count = min(count, len(sentences))
    return [sentences[index * len(sentences) // count] for index in range(count)]


def compute_references(bundle: Bundle, texts: Sequence[str]) -> References:
    """Compute each text alone, and all texts in one batch."""
    tasks = list(bundle.manifest.tasks)
    by_text = {}
    with Embedder.load(bundle) as embedder:
        classifier = Classifier(embedder)
        classifier.classify(texts[:1], task=tasks[0])  # warm-up
        started = time.perf_counter()
        for text in texts:
            predictions = {task: classifier.classify([text], task=task)[0] for task in tasks}
            probabilities = {task: predictions[task].probabilities for task in tasks}
            by_text[text] = Reference(probabilities, predictions[tasks[0]].tokens, normalize(embedder.embed([text])[0]))
        seconds = time.perf_counter() - started
        difference = max(
            max_difference(prediction.probabilities, by_text[text].probabilities[task])
            for task in tasks
            for text, prediction in zip(texts, classifier.classify(texts, task=task), strict=True)
        )
    return References(by_text, len(texts) * (len(tasks) + 1) / seconds, difference)


def normalize(vector_E: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vector at unit length."""
    return vector_E / np.float32(np.linalg.norm(vector_E))


def max_difference(probabilities: dict[str, float], expected: dict[str, float]) -> float:
    """Return the largest difference between probabilities of the same label."""
    return max(abs(probabilities[label] - expected[label]) for label in expected)


@contextmanager
def run_server(bundle: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a server on a free loopback port; yield its URL and process once the model is loaded."""
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
            url = re.search(r"http://\S+", "".join(lines))
            if process.poll() is not None or url is None:
                sys.exit(f"the server did not start: {''.join(lines)}")
            threading.Thread(target=lambda: sys.stderr.writelines(process.stderr or ()), daemon=True).start()
            yield url[0], process
        finally:
            watchdog.cancel()
            process.kill()


class Client:
    """Client of the server; `run` may be called in several threads."""

    def __init__(self, url: str, bundle: Bundle, references: References, *, deadline: float) -> None:
        """Take the server's URL, the expected results, and the end as a value of `time.perf_counter`."""
        self._address = urlsplit(url).netloc
        self._model, self._tasks = bundle.manifest.name, list(bundle.manifest.tasks)
        self._references, self._tolerance = references.by_text, references.tolerance
        self._texts = list(self._references)
        self._directions_NE = np.stack([reference.direction_E for reference in self._references.values()])
        self._deadline = deadline

    def run(self, seed: int) -> ClientLog:
        """Send random requests until the deadline."""
        rng, log = random.Random(seed), ClientLog()
        connection = http.client.HTTPConnection(self._address, timeout=_RESPONSE_S)
        while time.perf_counter() < self._deadline:
            (kind,) = rng.choices(list(_KINDS), list(_KINDS.values()))
            texts = rng.choices(self._texts, k=rng.randint(*_TEXTS_PER_REQUEST[kind]))
            try:
                self._send(connection, kind, texts, rng.choice(self._tasks), log)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                log.lost.append(f"{kind} of {len(texts)}: {type(error).__name__}: {error}")
                connection.close()
        connection.close()
        return log

    def _send(
        self, connection: http.client.HTTPConnection, kind: str, texts: list[str], task: str, log: ClientLog
    ) -> None:
        """Send a request and check its results."""
        path, body, field_name = "/classify", {"texts": texts, "task": task}, "predictions"
        if kind == "embeddings":
            path, body, field_name = "/v1/embeddings", {"input": texts, "model": self._model}, "data"
        started = time.perf_counter()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        seconds = time.perf_counter() - started
        log.statuses[str(response.status)] += 1
        if response.status == 429:
            time.sleep(float(response.headers["Retry-After"]))
            return
        if response.status != 200:
            log.lost.append(f"{kind} of {len(texts)}: status {response.status}: {content[:200]!r}")
            return
        log.seconds[kind].append(seconds)
        log.texts += len(texts)
        results = json.loads(content)[field_name]
        if len(results) != len(texts):
            log.lost.append(f"{kind} of {len(texts)}: {len(results)} results")
        for text, result in zip(texts, results, strict=False):
            if kind == "embeddings":
                error = self._check_embedding(text, result, log)
            else:
                error = self._check_prediction(text, task, result, log)
            if error:
                log.wrong.append(f"{kind} of {len(texts)}, {text[:40]!r}: {error}")

    def _check_prediction(self, text: str, task: str, prediction: dict[str, Any], log: ClientLog) -> str | None:
        reference = self._references[text]
        expected = reference.probabilities[task]
        if set(prediction["probabilities"]) != set(expected):
            return f"the labels are {', '.join(prediction['probabilities'])}"
        if prediction["tokens"] != reference.tokens:
            return f"{prediction['tokens']} tokens instead of {reference.tokens}"
        difference = max_difference(prediction["probabilities"], expected)
        log.max_difference = max(log.max_difference, difference)
        label = max(expected, key=expected.__getitem__)
        if difference > self._tolerance:
            return f"{task}: a probability is off by {difference:.4f}"
        if expected[label] - expected[prediction["label"]] > self._tolerance:
            return f"{task}: {prediction['label']} instead of {label}"
        return None

    def _check_embedding(self, text: str, result: dict[str, Any], log: ClientLog) -> str | None:
        vector_E = np.array(result["embedding"], np.float32)
        if vector_E.shape != self._directions_NE.shape[1:]:
            return f"the embedding has the shape {vector_E.shape}"
        cosines_N = self._directions_NE @ normalize(vector_E)
        nearest, cosine = self._texts[int(cosines_N.argmax())], float(cosines_N[self._texts.index(text)])
        log.min_cosine = min(log.min_cosine, cosine)
        if nearest != text:
            return f"the embedding is closer to that of {nearest[:40]!r}"
        return None if cosine >= _MIN_COSINE else f"the cosine is {cosine:.4f}"


def read_mean_texts_per_batch(url: str) -> float:
    """Return the mean number of texts per batch from the server's metrics."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_RESPONSE_S)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    values = dict(re.findall(r"^mtllm_edge_batch_texts_(sum|count) (\S+)$", metrics, re.MULTILINE))
    return float(values["sum"]) / max(float(values["count"]), 1)


if __name__ == "__main__":
    main()
