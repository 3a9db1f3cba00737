"""What a job is, and how far it is: what its journal keeps beside the answers."""

from __future__ import annotations

import msgspec

from mtllm_edge.files.sources import Identity


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a job is: with another one of these its journal is of no use."""

    command: str
    bundle: str
    """SHA-256 of its manifest, which has those of all files."""
    options: dict[str, str]
    """What else changes the output, as the command line names it."""
    inputs: list[Identity]
    version: int = 1
    """Of the journal's format."""

    def difference(self, other: Job) -> str | None:
        """How another job differs, in words; None where it does not."""
        if other.version != self.version:
            return "another release of mtllm-edge began it"
        if other.command != self.command:
            return f"it was {other.command!r}, not {self.command!r}"
        if other.bundle != self.bundle:
            return "it had another model"
        for name in {**other.options, **self.options}:
            then, now = other.options.get(name, "none"), self.options.get(name, "none")
            if then != now:
                return f"{name} was {then}, not {now}"
        if [source.name for source in other.inputs] != [source.name for source in self.inputs]:
            return "it had other inputs"
        changed = [now.name for then, now in zip(other.inputs, self.inputs, strict=True) if then != now]
        return f"{changed[0]} has changed since" if changed else None

    def is_repeated_by(self, other: Job) -> bool:
        """Whether another job is the same command; its output may have replaced an input meanwhile."""
        names = [source.name for source in self.inputs]
        return names == [source.name for source in other.inputs] and (
            (self.command, self.bundle, self.options) == (other.command, other.bundle, other.options)
        )


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a job is: a line of the log."""

    read: int = 0
    """Rows of the inputs, blank ones not counted."""
    rejected: int = 0
    """Of them set aside."""
    answers_bytes: int = 0
    rejected_bytes: int = 0
    crc: int = 0
    """CRC-32 of the texts of the rows that were read: tells whether the inputs are still the same."""
