"""Rows and results joined into the output, in one of its formats."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec

from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require
from mtllm_edge.files import parquet, writers, xlsx
from mtllm_edge.files.rows import Row, RowError
from mtllm_edge.inputs import Input
from mtllm_edge.jobs.inputs import InputReader, JobInput
from mtllm_edge.jobs.journal import Journal, Progress
from mtllm_edge.jobs.runner import Result

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet", ".xlsx": "xlsx"}
"""Suffix of an output -> its format."""
MAX_ROWS = {"xlsx": xlsx.MAX_ROWS}
_PACKAGES = {"parquet": "pyarrow", "xlsx": "openpyxl"}
UNLIMITED = 2**63


def check_format(name: str) -> None:
    """Raise UsageError, with the pip command, for a format whose package is not installed."""
    if name in _PACKAGES:
        require("files", _PACKAGES[name])


class LanguageSummary:
    """Texts, labels and confidences counted by language."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.texts: Counter[str] = Counter()
        """Language -> number of texts."""
        self.labels: dict[str, Counter[str]] = defaultdict(Counter)
        """Language -> label -> number of texts."""
        self._confidence: dict[str, float] = defaultdict(float)

    def add(self, language: str | None, label: str | None = None, confidence: float = 0.0) -> None:
        """Count a text; one without a language is left out."""
        if language is None:
            return
        self.texts[language] += 1
        if label is not None:
            self.labels[language][label] += 1
            self._confidence[language] += confidence

    def mean_confidence(self, *languages: str) -> float:
        """Return the mean confidence over the texts of some languages."""
        return sum(self._confidence[code] for code in languages) / sum(self.texts[code] for code in languages)


@dataclass
class OutputRows:
    """Rows with their results, in order; can be iterated once."""

    reader: InputReader
    inputs: Sequence[JobInput]
    journal: Journal
    count: int = 0
    """Number of rows so far; likewise the following numbers."""
    truncated: int = 0
    split: int = 0
    """Texts that were read in several windows."""
    abstained: int = 0
    languages: LanguageSummary = field(default_factory=LanguageSummary)

    def __post_init__(self) -> None:
        """Get the columns of the first result."""
        self.progress = self.journal.progress
        self.first: Result = msgspec.json.decode(
            next((line for line in self.journal.results() if line != b"null"), b"{}")
        )
        """The first result; empty if every row is rejected."""
        self.input_columns = list(dict.fromkeys(itertools.chain.from_iterable(one.columns for one in self.inputs)))
        self.names = writers.free_names(list(self.first), self.input_columns)
        """Columns of the results -> their names in the output."""

    @property
    def columns(self) -> list[str]:
        """Columns of the output."""
        return [*self.input_columns, *self.names.values()]

    def __iter__(self) -> Iterator[tuple[Row, Input, Result]]:
        """Yield each row with its input and result; UsageError if inputs have changed or the journal is damaged."""
        decode = msgspec.json.Decoder(dict[str, Any] | None).decode
        encode = msgspec.json.Encoder().encode
        read = crc = 0
        results = self.journal.results()
        for _, _, row, item in self.reader.read(self.inputs):
            result = decode(next(results, b"null"))
            read += 1
            if not isinstance(item, RowError):
                crc = zlib.crc32(encode(item), crc)
                if result is not None and row is not None:
                    self._count(result)
                    yield row, item[1], result
        if Progress(read, read - self.count, crc) != self.progress:
            raise UsageError("the inputs changed while the job ran; discard its results with --restart")

    def _count(self, result: Result) -> None:
        self.count += 1
        self.truncated += result["truncated"]
        self.split += result.get("windows", 1) > 1
        self.abstained += result.get("abstained", False)
        self.languages.add(result.get("language"), result.get("label"), result.get("confidence", 0.0))

    def rows(self) -> Iterator[Row]:
        """Yield each row with the columns of its result added."""
        names = self.names
        renamed = any(name != free for name, free in names.items())
        for row, _, result in self:
            row.update({names[name]: value for name, value in result.items()} if renamed else result)
            yield row


def write(name: str, file: BinaryIO, rows: OutputRows) -> str | None:
    """Write rows in one of `FORMATS`, or as ``npy``, which has the column ``embedding`` alone.

    Returns a note on what the format could not hold, if anything.
    """
    if name == "jsonl":
        writers.write_jsonl(file, rows.rows())
    elif name in ("csv", "tsv"):
        writers.write_csv(file, rows.columns, rows.rows(), delimiter="\t" if name == "tsv" else ",")
    elif name == "parquet":
        parquet.write_parquet(file, _arrow_types(rows), rows.rows())
    elif name == "xlsx":
        truncated = xlsx.write_xlsx(file, rows.columns, rows.rows())
        return f"{truncated:,} cells lost their end, as xlsx holds 32,767 characters in each" if truncated else None
    else:
        shape = (rows.progress.read - rows.progress.rejected, len(rows.first["embedding"]))
        writers.write_npy(file, (result["embedding"] for _, _, result in rows), shape)
    return None


def _arrow_types(rows: OutputRows) -> dict[str, Any]:
    """Return the Arrow types of the columns: those of parquet inputs if they agree, else those of the cells."""
    candidates: dict[str, list[Any]] = {name: [] for name in rows.input_columns}
    for job_input in rows.inputs:
        if job_input.source.suffix == ".parquet":
            with job_input.source.open() as file:
                types = parquet.parquet_types(file, job_input.source.name)
        else:
            types = {name: _arrow_type(cell_types) for name, cell_types in job_input.columns.items()}
        for name in job_input.columns:
            candidates[name] += [types[name]] if types[name] is not None else []
    return {
        name: arrow[0] if arrow and all(one == arrow[0] for one in arrow) else parquet.arrow_type({str})
        for name, arrow in candidates.items()
    } | {rows.names[name]: parquet.arrow_type({type(value)}) for name, value in rows.first.items()}


def _arrow_type(cell_types: set[type]) -> Any | None:
    """Return the Arrow type of cells; None if all are null."""
    cell_types = cell_types - {type(None)}
    if cell_types & {dict, list}:  # which only in results hold numbers alone
        cell_types = {str}
    return parquet.arrow_type(cell_types) if cell_types else None


def groups(rows: OutputRows, size: int) -> Iterator[list[tuple[Input, Result]]]:
    """Yield inputs and results in groups of `size` rows."""
    pairs = ((item, result) for _, item, result in rows)
    while group := list(itertools.islice(pairs, size)):
        yield group
