"""Specification of a job: it is resumed only by a command with the same one."""

from __future__ import annotations

import msgspec

from mtllm_edge.files.sources import Identity


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that determines the results of a job."""

    command: str
    bundle: str
    """SHA-256 of the bundle's manifest, which lists that of every file."""
    options: dict[str, str]
    """Command-line options that change the output."""
    inputs: list[Identity]
    version: int = 2
    """Version of the journal's format."""

    def difference(self, other: Job) -> str | None:
        """Describe how another job, begun before, differs; None if it does not."""
        if other.version != self.version:
            return "another release of mtllm-edge began it"
        if other.command != self.command:
            return f"it was {other.command!r}, not {self.command!r}"
        if other.bundle != self.bundle:
            return "it had another model"
        for name in {**other.options, **self.options}:
            before, now = other.options.get(name, "none"), self.options.get(name, "none")
            if before != now:
                return f"{name} was {before}, not {now}"
        if [source.name for source in other.inputs] != [source.name for source in self.inputs]:
            return "it had other inputs"
        changed = [now.name for before, now in zip(other.inputs, self.inputs, strict=True) if before != now]
        return f"{changed[0]} has changed since" if changed else None

    def same_command(self, other: Job) -> bool:
        """Return whether another job is the same command, though its inputs may have changed."""
        return (self.command, self.bundle, self.options, [source.name for source in self.inputs]) == (
            *(other.command, other.bundle, other.options),
            [source.name for source in other.inputs],
        )
