"""Rows and their answers into the output, in one of its formats."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec

from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require
from mtllm_edge.files import parquet, writers, xlsx
from mtllm_edge.files.rows import Record, RowError
from mtllm_edge.inputs import Input
from mtllm_edge.jobs.answer_store import Store
from mtllm_edge.jobs.inputs import Reading, Request
from mtllm_edge.jobs.language_summary import LanguageSummary
from mtllm_edge.jobs.runner import Answer

FORMS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet", ".xlsx": "xlsx"}
"""Suffix of an output -> its format."""
MOST_ROWS = {"xlsx": xlsx.MOST_ROWS}
_NEEDS = {"parquet": "pyarrow", "xlsx": "openpyxl"}
ENDLESS = 2**63


def check_form(form: str) -> None:
    """Refuse a format whose package is not installed.

    Raises:
        UsageError: It is not; the message has the pip line.
    """
    if form in _NEEDS:
        require("files", _NEEDS[form])


@dataclass
class Joined:
    """The rows that have an answer, in order, with it; may be read once."""

    request: Request
    readings: Sequence[Reading]
    store: Store
    rows: int = 0
    """Rows read so far; likewise the others."""
    truncated: int = 0
    split: int = 0
    """Texts that were read in several windows."""
    abstained: int = 0
    languages: LanguageSummary = field(default_factory=LanguageSummary)

    def __post_init__(self) -> None:
        """Look at the first answer, for its columns."""
        with self.store.answers() as answers:
            first = next((line for line in answers if line != b"null\n"), b"{}")
        self.first: Answer = msgspec.json.decode(first)
        """Some answer; empty where there is none at all."""
        columns = [reading.columns for reading in self.readings]
        self.columns = list(dict.fromkeys(itertools.chain.from_iterable(columns)))
        """Of the inputs."""
        self.names = writers.free_names(list(self.first), self.columns)
        """Columns of the answers -> what they are called in the output."""

    def __iter__(self) -> Iterator[tuple[Record, Input, Answer]]:
        """The rows.

        Raises:
            UsageError: The inputs have changed.
        """
        decode = msgspec.json.Decoder(dict[str, Any] | None).decode
        encode = msgspec.json.Encoder().encode
        read = crc = 0
        with self.store.answers() as answers:
            for _, _, record, item in self.request.read(self.readings):
                answer = decode(next(answers, b"null\n"))
                read += 1
                if not isinstance(item, RowError):
                    crc = zlib.crc32(encode(item), crc)
                    if answer is not None and record is not None:
                        self.rows += 1
                        self._count(answer)
                        yield record, item[1], answer
        if (read, crc) != (self.store.progress.read, self.store.progress.crc):
            raise UsageError("the inputs changed while the job ran; throw away what it did with --restart")

    def _count(self, answer: Answer) -> None:
        self.truncated += answer["truncated"]
        self.split += answer.get("windows", 1) > 1
        self.abstained += answer.get("abstained", False)
        self.languages.add(answer.get("language"), answer.get("label"), answer.get("confidence", 0.0))

    def records(self) -> Iterator[Record]:
        """Each row with its answer beside its own columns."""
        names = self.names
        renamed = any(name != free for name, free in names.items())
        for record, _, answer in self:
            record.update({names[name]: value for name, value in answer.items()} if renamed else answer)
            yield record


def write(form: str, file: BinaryIO, joined: Joined) -> str | None:
    """Write the output.

    Args:
        form: Its format: one of `FORMS`, or ``npy``, the answers' ``embedding`` alone.
        file: The file to fill.
        joined: The rows.

    Returns:
        What the format could not hold, if there was such.
    """
    columns = [*joined.columns, *joined.names.values()]
    if form == "jsonl":
        writers.write_jsonl(file, joined.records())
    elif form in ("csv", "tsv"):
        writers.write_csv(file, columns, joined.records(), delimiter="\t" if form == "tsv" else ",")
    elif form == "parquet":
        parquet.write_parquet(file, _types(joined), joined.records())
    elif form == "xlsx":
        cut = xlsx.write_xlsx(file, columns, joined.records())
        return f"{cut:,} cells lost their end, as xlsx holds 32,767 characters in each" if cut else None
    else:
        progress = joined.store.progress
        shape = (progress.read - progress.rejected, len(joined.first["embedding"]))
        writers.write_npy(file, (answer["embedding"] for _, _, answer in joined), shape)
    return None


def _types(joined: Joined) -> dict[str, Any]:
    """Arrow types of the output's columns: those of parquet inputs, where they agree, else by the values."""
    declared: dict[str, list[Any]] = {name: [] for name in joined.columns}
    for reading in joined.readings:
        if reading.source.form == ".parquet":
            with reading.source.open() as file:
                found = parquet.parquet_types(file)
        else:
            found = {name: _by_values(kinds) for name, kinds in reading.columns.items()}
        for name in reading.columns:
            declared[name] += [found[name]] if found[name] is not None else []
    types = {name: kinds[0] if _agree(kinds) else parquet.arrow_type({str}) for name, kinds in declared.items()}
    return types | {joined.names[name]: parquet.arrow_type({type(value)}) for name, value in joined.first.items()}


def _by_values(kinds: set[type]) -> Any | None:
    """The type for some values; None where all are null."""
    kinds = kinds - {type(None)}
    if kinds & {dict, list}:  # of which only answers have numbers throughout
        kinds = {str}
    return parquet.arrow_type(kinds) if kinds else None


def _agree(kinds: Sequence[Any]) -> bool:
    return bool(kinds) and all(kind == kinds[0] for kind in kinds)


def tables(joined: Joined, rows: int) -> Iterator[list[tuple[Input, Answer]]]:
    """The rows in groups, for tables that people read."""
    pairs: Iterable[tuple[Input, Answer]] = ((item, answer) for _, item, answer in joined)
    pairs = iter(pairs)
    while group := list(itertools.islice(pairs, rows)):
        yield group
