"""Computes the rows of a job chunk by chunk into its journal; repeated texts are computed once."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.rows import RowError
from mtllm_edge.jobs.inputs import InputReader, JobInput, ModelInput
from mtllm_edge.jobs.journal import Journal, Progress

MIN_TEXTS, MAX_TEXTS = 256, 4096
"""Texts per chunk. Its batches are sorted by length, so a small chunk would leave them half full."""
SECONDS = 15.0
"""Duration of a chunk, which is what a kill may cost; slow texts make small chunks."""
_ROWS_PER_TEXT = 16
"""Most rows of a chunk per computed text; the others are repetitions."""
_CACHE_BYTES = 32 * 2**20
"""Size of the cache of results."""
_ENTRY_BYTES = 200
"""Memory of a cache entry besides its result."""
_REJECTED = b"null"

Result: TypeAlias = dict[str, Any]
"""Column -> value, for one text."""
Model: TypeAlias = Callable[[Sequence[ModelInput], Callable[[int], None]], list[Result]]
"""Returns a result for each input, and calls the given function with the number of texts of each batch."""


class ProgressDisplay(Protocol):
    """Display of a job's progress."""

    def start(self, done: int) -> None:
        """Start with `done` rows from an earlier run."""

    def set_total(self, total: int) -> None:
        """Set the estimated number of rows."""

    def advance(self, texts: int) -> None:
        """Add computed texts."""

    def set_done(self, done: int) -> None:
        """Set the number of rows with results."""


class Runner:
    """One run of a job over its inputs."""

    def __init__(
        self,
        reader: InputReader,
        inputs: Sequence[JobInput],
        journal: Journal,
        display: ProgressDisplay,
        *,
        strict: bool,
        max_rows: int,
    ) -> None:
        """Prepare a run; rows that the journal has are not computed again.

        A strict run stops at the first row that cannot be read. The output's format allows `max_rows`.
        """
        self._reader, self._inputs, self._journal, self._display = reader, inputs, journal, display
        self._strict, self._max_rows = strict, max_rows
        self._cache = _ResultCache(_CACHE_BYTES)
        self._chunk_texts = MIN_TEXTS
        self._total_bytes = sum(job_input.source.identity.size for job_input in inputs)
        self.first_error: str | None = None
        """Place and message of the first rejected row."""

    def run(self, model: Model) -> None:
        """Compute every row that has no result yet.

        Raises:
            DataError: A row cannot be read, and the run is strict.
            UsageError: The inputs have changed since an earlier run, or are too long for the output.
        """
        encode = msgspec.json.Encoder().encode
        resumed = self._journal.progress
        self._display.start(resumed.read)
        chunk = _Chunk(self._cache)
        read = crc = 0
        for job_input, number, row, item in self._reader.read(self._inputs):
            read += 1
            key = None
            if isinstance(item, RowError):
                self._report(job_input, number, item)
            else:
                data = encode(item)
                crc = zlib.crc32(data, crc)
                key = hashlib.blake2b(data, digest_size=16).digest()
                if row is not None and job_input.source.suffix in (".jsonl", ".xlsx"):
                    job_input.add_types(row)
            if read <= resumed.read:
                if read == resumed.read and crc != resumed.crc:
                    raise _changed()
                continue
            chunk.add(key, item, job_input, number)
            if len(chunk.new) >= self._chunk_texts or len(chunk.rows) >= self._chunk_texts * _ROWS_PER_TEXT:
                self._display.set_total(self._estimate_rows(read, job_input))
                self._finish(chunk, model, read, crc)
                chunk = _Chunk(self._cache)
        if read < resumed.read:
            raise _changed()
        if chunk.rows:
            self._display.set_total(read)
            self._finish(chunk, model, read, crc)

    def _report(self, job_input: JobInput, number: int, error: RowError) -> None:
        message = f"{job_input.source.place(number)}{error.message}"
        if self._strict:
            raise DataError(message)
        self.first_error = self.first_error or message

    def _estimate_rows(self, read: int, present: JobInput) -> int:
        """Estimate the number of rows of all inputs by the share of their bytes that has been read."""
        before = self._inputs[: self._inputs.index(present)]
        done = sum(job_input.source.identity.size for job_input in before)
        done += round(present.source.progress * present.source.identity.size)
        return max(read, round(read * self._total_bytes / max(done, 1)))

    def _finish(self, chunk: _Chunk, model: Model, read: int, crc: int) -> None:
        """Compute a chunk and store it in the journal."""
        started = time.perf_counter()
        results = self._compute(model, list(chunk.new.values()))
        seconds = time.perf_counter() - started
        if seconds > 0:
            self._chunk_texts = min(max(int(len(results) / seconds * SECONDS), MIN_TEXTS), MAX_TEXTS)
        lines = chunk.lines(results)
        rejected = chunk.rejected(results)
        for job_input, number, error in rejected:
            self._report(job_input, number, error)
        total_rejected = self._journal.progress.rejected + len(rejected)
        if read - total_rejected > self._max_rows:
            raise UsageError(f"the output's format holds {self._max_rows:,} rows at most; name another --output")
        self._journal.append(lines, _csv(rejected), Progress(read, total_rejected, crc))
        self._display.set_done(read)

    def _compute(self, model: Model, inputs: list[ModelInput]) -> list[Result | RowError]:
        """Return the result of each input, or the model's error; bisection finds the input that it refuses."""
        if not inputs:
            return []
        try:
            return list(model(inputs, self._display.advance))
        except DataError as error:
            if len(inputs) == 1:
                message = f" {str(error).removeprefix('text 0 ')}"
                return [RowError(message, 0, msgspec.json.encode(inputs[0][1]).decode())]
        half = len(inputs) // 2
        return [*self._compute(model, inputs[:half]), *self._compute(model, inputs[half:])]


class _Chunk:
    """Rows that are computed together."""

    def __init__(self, cache: _ResultCache) -> None:
        self._cache = cache
        self.new: dict[bytes, ModelInput] = {}
        """Inputs to compute, by digest."""
        self.rows: list[tuple[bytes | None, bytes | None, JobInput, int]] = []
        """Digest and cached result of each row, its origin and number."""
        self._errors: dict[int, RowError] = {}
        """By index in `rows`."""

    def add(self, key: bytes | None, item: ModelInput | RowError, job_input: JobInput, number: int) -> None:
        """Add a row; the digest of an error is None."""
        if key is None or isinstance(item, RowError):
            assert isinstance(item, RowError)
            self._errors[len(self.rows)] = item
            self.rows.append((None, _REJECTED, job_input, number))
            return
        line = self._cache.get(key)
        if line is None:
            self.new[key] = item
        self.rows.append((key, line, job_input, number))

    def lines(self, results: Sequence[Result | RowError]) -> list[bytes]:
        """Return the line of each row, from the results of `new`."""
        encode = msgspec.json.Encoder().encode
        computed = {
            key: _REJECTED if isinstance(result, RowError) else encode(result)
            for key, result in zip(self.new, results, strict=True)
        }
        for key, line in computed.items():
            if line is not _REJECTED:
                self._cache.put(key, line)
        return [computed[key] if line is None and key is not None else line or b"" for key, line, _, _ in self.rows]

    def rejected(self, results: Sequence[Result | RowError]) -> list[tuple[JobInput, int, RowError]]:
        """Return the rejected rows in order."""
        refused = {key: result for key, result in zip(self.new, results, strict=True) if isinstance(result, RowError)}
        if refused:
            for index, (key, _, _, number) in enumerate(self.rows):
                if key in refused:
                    self._errors[index] = dataclasses.replace(refused[key], line=number)
        return [(*self.rows[index][2:], self._errors[index]) for index in sorted(self._errors)]


class _ResultCache:
    """Encoded results by digest of their input, the least recently used ones discarded."""

    def __init__(self, max_bytes: int) -> None:
        self._lines: OrderedDict[bytes, bytes] = OrderedDict()
        self._free = max_bytes

    def get(self, key: bytes) -> bytes | None:
        line = self._lines.get(key)
        if line is not None:
            self._lines.move_to_end(key)
        return line

    def put(self, key: bytes, line: bytes) -> None:
        self._lines[key] = line
        self._free -= len(line) + _ENTRY_BYTES
        while self._free < 0 and self._lines:
            _, oldest = self._lines.popitem(last=False)
            self._free += len(oldest) + _ENTRY_BYTES


def _csv(rejected: Sequence[tuple[JobInput, int, RowError]]) -> bytes:
    """Return the lines of the file of rejected rows: file, line, reason, row."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows((job_input.source.name, error.line, error.reason, error.raw) for job_input, _, error in rejected)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _changed() -> UsageError:
    return UsageError(
        "the texts of the inputs have changed since the job was begun; discard its results with --restart"
    )
