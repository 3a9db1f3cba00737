"""Rows through a model, chunk by chunk, into a store of answers; texts that come again are not computed again."""

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
from mtllm_edge.jobs.answer_store import Store
from mtllm_edge.jobs.inputs import Asked, Reading, Request
from mtllm_edge.jobs.spec import Progress

FEWEST, MOST = 256, 4096
"""Texts that are computed between two entries of the journal. Their token batches are sorted by length, so that few
texts at a time would leave batches half full."""
SECONDS = 15.0
"""What a kill may cost where texts are slow; a chunk has as many as are computed in this time."""
_ROWS_PER_TEXT = 16
"""Rows of a chunk for each text that must be computed, at most: the others are repetitions."""
_REMEMBERED = 32 * 2**20
"""Bytes of answers that are kept for texts that come again."""
_OVERHEAD = 200
"""Bytes that Python needs for one of them beside the answer."""
_SET_ASIDE = b"null\n"

Answer: TypeAlias = dict[str, Any]
"""Column -> what a model says of one text."""
Model: TypeAlias = Callable[[Sequence[Asked], Callable[[int], None]], list[Answer]]
"""From texts to an answer for each; calls the function it is given with the number of texts of every batch."""


class Pace(Protocol):
    """Who is told how far a job is."""

    def start(self, done: int) -> None:
        """`done` rows have their answers from an earlier run."""

    def expect(self, total: int) -> None:
        """There are `total` rows, as it seems now."""

    def advance(self, texts: int) -> None:
        """So many texts more were computed."""

    def settle(self, done: int) -> None:
        """`done` rows have their answers, all in all."""


class Runner:
    """One run of a job over its inputs."""

    def __init__(
        self, request: Request, readings: Sequence[Reading], store: Store, pace: Pace, *, strict: bool, most_rows: int
    ) -> None:
        """Prepare a run.

        Args:
            request: What is read of the rows.
            readings: The inputs.
            store: Where answers go; those that it has are not computed again.
            pace: Told how far it is.
            strict: Stop at the first row that cannot be read.
            most_rows: Of the output, as its format allows.
        """
        self._request, self._readings, self._store, self._pace = request, readings, store, pace
        self._strict, self._most_rows = strict, most_rows
        self._known = _Known(_REMEMBERED)
        self._size = FEWEST
        self._weight = sum(reading.source.identity.size for reading in readings)
        self.first_fault: str | None = None
        """The first row that was set aside, with its place."""

    def run(self, model: Model) -> None:
        """Compute every row that has no answer yet.

        Raises:
            DataError: A row cannot be read, and the run is strict.
            UsageError: The inputs have changed since an earlier run, or are too long for the output.
        """
        encode = msgspec.json.Encoder().encode
        resumed = self._store.progress
        self._pace.start(resumed.read)
        chunk = _Chunk(self._known)
        read = crc = 0
        for reading, number, record, item in self._request.read(self._readings):
            read += 1
            if isinstance(item, RowError):
                self._note(reading, number, item)
                key = None
            else:
                data = encode(item)
                crc = zlib.crc32(data, crc)
                key = hashlib.blake2b(data, digest_size=16).digest()
                if record is not None and reading.source.form in (".jsonl", ".xlsx"):
                    reading.look(record)
            if read <= resumed.read:
                if read == resumed.read and crc != resumed.crc:
                    raise _changed()
                continue
            chunk.add(key, item, reading, number)
            if len(chunk.new) >= self._size or len(chunk.rows) >= self._size * _ROWS_PER_TEXT:
                self._pace.expect(self._estimate(read, reading))
                self._finish(chunk, model, read, crc)
                chunk = _Chunk(self._known)
        if read < resumed.read:
            raise _changed()
        if chunk.rows:
            self._pace.expect(read)
            self._finish(chunk, model, read, crc)

    def _note(self, reading: Reading, number: int, fault: RowError) -> None:
        where = f"{reading.source.place(number)}{fault.said}"
        if self._strict:
            raise DataError(where)
        self.first_fault = self.first_fault or where

    def _estimate(self, read: int, now: Reading) -> int:
        """Number of rows of all inputs, judged by how much of their bytes these took."""
        before = self._readings[: self._readings.index(now)]
        done = sum(reading.source.identity.size for reading in before) + now.source.share * now.source.identity.size
        return max(read, round(read * self._weight / max(done, 1)))

    def _finish(self, chunk: _Chunk, model: Model, read: int, crc: int) -> None:
        """Compute a chunk and put it into the store."""
        started = time.perf_counter()
        answers = self._compute(model, list(chunk.new.values()))
        seconds = time.perf_counter() - started
        if seconds > 0:
            self._size = min(max(int(len(answers) / seconds * SECONDS), FEWEST), MOST)
        lines = chunk.lines(answers)
        rejected = chunk.rejected(answers)
        for reading, number, fault in rejected:
            self._note(reading, number, fault)
        before = self._store.progress
        if read - before.rejected - len(rejected) > self._most_rows:
            raise UsageError(f"the output's format holds {self._most_rows:,} rows at most; name another --output")
        progress = Progress(read=read, rejected=before.rejected + len(rejected), crc=crc)
        self._store.append(b"".join(lines), _csv(rejected, header=not before.rejected), progress)
        self._pace.settle(read)

    def _compute(self, model: Model, inputs: list[Asked]) -> list[Answer | RowError]:
        """An answer for each text, or what the model has against it; one that it refuses is found by halving."""
        if not inputs:
            return []
        try:
            return list(model(inputs, self._pace.advance))
        except DataError as error:
            if len(inputs) == 1:
                return [
                    RowError(f" {str(error).removeprefix('text 0 ')}", 0, msgspec.json.encode(inputs[0][1]).decode())
                ]
        half = len(inputs) // 2
        return [*self._compute(model, inputs[:half]), *self._compute(model, inputs[half:])]


class _Chunk:
    """Rows that are computed together."""

    def __init__(self, known: _Known) -> None:
        self._known = known
        self.new: dict[bytes, Asked] = {}
        """What must be computed, by digest."""
        self.rows: list[tuple[bytes | None, bytes | None, Reading, int]] = []
        """Digest, the answer if it is known, and where it stands."""
        self._faults: dict[int, RowError] = {}
        """By index in `rows`."""

    def add(self, key: bytes | None, item: Asked | RowError, reading: Reading, number: int) -> None:
        """Add a row; of a fault the key is None."""
        if key is None or isinstance(item, RowError):
            assert isinstance(item, RowError)
            self._faults[len(self.rows)] = item
            self.rows.append((None, _SET_ASIDE, reading, number))
            return
        line = self._known.get(key)
        if line is None:
            self.new[key] = item
        self.rows.append((key, line, reading, number))

    def lines(self, answers: Sequence[Answer | RowError]) -> list[bytes]:
        """A line for every row, given the answers for `new`."""
        encode = msgspec.json.Encoder().encode
        computed = {
            key: _SET_ASIDE if isinstance(answer, RowError) else encode(answer) + b"\n"
            for key, answer in zip(self.new, answers, strict=True)
        }
        for key, line in computed.items():
            if line is not _SET_ASIDE:
                self._known.put(key, line)
        return [computed[key] if line is None and key is not None else line or b"" for key, line, _, _ in self.rows]

    def rejected(self, answers: Sequence[Answer | RowError]) -> list[tuple[Reading, int, RowError]]:
        """The rows that are set aside, in order."""
        refused = {key: answer for key, answer in zip(self.new, answers, strict=True) if isinstance(answer, RowError)}
        if refused:
            for index, (key, _, _, number) in enumerate(self.rows):
                if key in refused:
                    self._faults[index] = dataclasses.replace(refused[key], line=number)
        return [(*self.rows[index][2:], self._faults[index]) for index in sorted(self._faults)]


class _Known:
    """Answers by digest of their texts, those that were asked for last, within a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._lines: OrderedDict[bytes, bytes] = OrderedDict()
        self._room = limit

    def get(self, key: bytes) -> bytes | None:
        line = self._lines.get(key)
        if line is not None:
            self._lines.move_to_end(key)
        return line

    def put(self, key: bytes, line: bytes) -> None:
        self._lines[key] = line
        self._room -= len(line) + _OVERHEAD
        while self._room < 0 and self._lines:
            _, oldest = self._lines.popitem(last=False)
            self._room += len(oldest) + _OVERHEAD


def _csv(rejected: Sequence[tuple[Reading, int, RowError]], *, header: bool) -> bytes:
    if not rejected:
        return b""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(("file", "line", "reason", "row"))
    writer.writerows((reading.source.name, fault.line, fault.reason, fault.raw) for reading, _, fault in rejected)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _changed() -> UsageError:
    return UsageError("the inputs have other texts than when the job was begun; throw away what it did with --restart")
