"""Open mutated bundles, and run accepted ones in child processes.

``python -m tests.tools.fuzz.run --count 20000 -o benchmarks/results/mutations`` makes as many mutants of each format
and writes their outcomes. A mutant is reproducible from its number and the seed.

The manifest of a mutant is updated, so that its digest matches; `Bundle.verify` is also tried with the old digest, and
must refuse it. Mutants that pass the checks in Python are loaded and run in a child process, all or a share of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from mtllm_edge import Bundle
from mtllm_edge.backends.probing.child_process import exit_reason
from mtllm_edge.backends.probing.llama_cpp import engine_settings
from mtllm_edge.bundle import header_checks
from mtllm_edge.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.errors import ModelError, MtllmError
from mtllm_edge.tokenization.sentencepiece import SentencePieces
from tests.fixtures.tiny_bundle import lora_weights, make_gemma2, make_tiny_bundle, write_lora, write_manifest
from tests.fixtures.tiny_onnx import make_onnx_bundle, make_onnx_encoder_bundle
from tests.tools.fuzz import mutators
from tests.tools.fuzz.mutators import Mutator

SEED = 20261125
SECONDS = 2.0
"""Maximum processor time of a mutant."""
_PATIENCE = 30.0
"""Maximum wall time of a mutant, on a busy machine."""
_MAX_EXAMPLES = 12
_REFERENCE = Path(__file__).parents[3] / "reference/parts/tokenizer.json"


@dataclass(frozen=True)
class Target:
    """A file of a bundle, and its mutator."""

    bundle: str
    name: str
    mutate: Mutator


FORMATS: dict[str, tuple[Target, ...]] = {
    "gguf": tuple(Target(bundle, "llm.gguf", mutators.mutate_gguf) for bundle in ("f32", "q8_0", "embed", "gemma2")),
    "adapter": (Target("adapted", "tasks/topic/adapter.gguf", mutators.mutate_gguf),),
    "ctranslate2": (
        Target("f32", "encoder/model.bin", mutators.mutate_ctranslate2),
        Target("q8_0", "encoder/model.bin", mutators.mutate_ctranslate2),
        Target("f32", "encoder/config.json", mutators.mutate_json),
        Target("f32", "encoder/vocabulary.json", mutators.mutate_json),
    ),
    "onnx": (
        Target("onnx", "llm.onnx", mutators.mutate_onnx),
        Target("onnx_encoder", "encoder.onnx", mutators.mutate_onnx),
    ),
    "safetensors": (
        Target("f32", "bridge.safetensors", mutators.mutate_safetensors),
        Target("f32", "tasks/topic/head.safetensors", mutators.mutate_safetensors),
    ),
    "tokenizer": tuple(Target(bundle, "tokenizer.json", mutators.mutate_tokenizer) for bundle in ("f32", "pieces")),
    "manifest": (
        Target("f32", MANIFEST_NAME, mutators.mutate_json),
        Target("onnx", MANIFEST_NAME, mutators.mutate_json),
        Target("calibrated", MANIFEST_NAME, mutators.mutate_json),
    ),
}


class Tally(msgspec.Struct):
    """Outcomes of the mutants of one format."""

    mutants: int = 0
    unchanged: int = 0
    """Mutations without effect, which do not count as mutants."""
    refused_before_native_load: int = 0
    accepted_not_run: int = 0
    """Accepted, and outside the share that is run."""
    refused_by_engine: int = 0
    ran: int = 0
    crashed: int = 0
    hung: int = 0
    python_errors: int = 0
    """Exceptions that are not the project's own."""
    slowest_open_seconds: float = 0.0
    digest_checked: int = 0
    """Mutants that `verify` compared with the old digest."""
    digest_missed: int = 0
    """Mutants that it accepted."""
    seconds: float = 0.0
    native_seconds: float = 0.0
    """Seconds of running accepted mutants."""
    examples: dict[str, list[str]] = {}
    """Failure -> the first such mutants."""

    def note(self, outcome: str, example: str) -> None:
        """Count a failure."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        examples = self.examples.setdefault(outcome, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(example)


@dataclass
class Runner:
    """A child process that runs bundles, restarted after a crash or hang."""

    switches: tuple[bool, bool]
    _child: subprocess.Popen[bytes] | None = None
    reasons: Counter[str] = field(default_factory=Counter)

    def run(self, folder: Path) -> tuple[str, str]:
        """Outcome, by its name in `Tally`, and reason of one bundle."""
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{folder}\n".encode())
        child.stdin.flush()
        before, began = _processor_seconds(child.pid), time.monotonic()
        while not select.select([child.stdout], [], [], 0.5)[0]:
            used = _processor_seconds(child.pid) - before
            if used > SECONDS + 0.5 or time.monotonic() - began > _PATIENCE:
                self.close()
                return "hung", f"{used:.1f} s of processor time"
        answer = child.stdout.readline().decode().strip()
        if not answer:
            code = child.wait()
            self.close()
            return "crashed", exit_reason(code)
        if _processor_seconds(child.pid) - before > SECONDS:
            return "hung", answer
        outcome = {"ran": "ran", "refused": "refused_by_engine"}.get(answer.split()[0], "python_errors")
        return outcome, "" if answer == "ran" else answer

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.tools.fuzz.worker", *(str(int(switch)) for switch in self.switches)]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
        self._child.stdin.write(b"/nonexistent\n")  # type: ignore[union-attr]  # the imports of the child process take seconds
        self._child.stdin.flush()  # type: ignore[union-attr]
        self._child.stdout.readline()  # type: ignore[union-attr]
        return self._child

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _processor_seconds(pid: int) -> float:
    """Processor seconds of a process, all threads together; 0 after its end."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def bundles() -> Iterator[dict[str, Path]]:
    """Yield valid bundles, in shared memory if the system has it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        folder = Path(scratch)
        folders = {
            "f32": make_tiny_bundle(folder / "f32"),
            "q8_0": make_tiny_bundle(folder / "q8_0", quantization="q8_0", encoder_quantization="int8"),
            "embed": make_tiny_bundle(folder / "embed", architecture="llama-embed", attention="bidirectional"),
        }
        makers = {
            "gemma2": make_gemma2,
            "onnx": make_onnx_bundle,
            "onnx_encoder": make_onnx_encoder_bundle,
            "adapted": _add_adapter,
            "pieces": _add_pieces,
            "calibrated": _add_temperatures,
        }
        for name, make in makers.items():
            folders[name] = make(Path(shutil.copytree(folder / "f32", folder / name)))
        for path in folders.values():
            Bundle.open(path).verify()
        yield folders


def _add_adapter(folder: Path) -> Path:
    """Add an adapter to a task of a tiny bundle."""
    name = "tasks/topic/adapter.gguf"
    write_lora(folder / name, lora_weights(np.random.default_rng(SEED)))
    parts = Bundle.open(folder).manifest
    task = msgspec.structs.replace(parts.tasks["topic"], adapter=name)
    parts = msgspec.structs.replace(parts, tasks=parts.tasks | {"topic": task}, files=list_files(folder))
    (folder / MANIFEST_NAME).write_bytes(parts.to_json())
    return folder


def _add_temperatures(folder: Path) -> Path:
    """Calibrate a task of a tiny bundle, with a threshold."""
    parts = Bundle.open(folder).manifest
    own = {"deu_Latn": 0.5, "swh_Latn": 2.0}
    task = msgspec.structs.replace(
        parts.tasks["topic"], temperature=1.5, temperatures=own, threshold=0.5, abstain="ask"
    )
    parts = msgspec.structs.replace(parts, tasks=parts.tasks | {"topic": task})
    (folder / MANIFEST_NAME).write_bytes(parts.to_json())
    return folder


def _add_pieces(folder: Path) -> Path:
    """Replace the tokenizer of a tiny bundle by one that SentencePiece reads."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes()) | {"normalizer": json.loads(_REFERENCE.read_bytes())["normalizer"]}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    assert SentencePieces.open(path) is not None
    write_manifest(folder)
    return folder


def try_format(
    name: str,
    count: int,
    folders: dict[str, Path],
    runner: Runner,
    *,
    seed: int = SEED,
    native_seconds: float = 1e9,
) -> Tally:
    """Make `count` mutants of a format, and run accepted ones.

    Args:
        name: One of `FORMATS`.
        count: Mutants.
        folders: The bundles, which are unchanged afterwards.
        runner: Runs accepted mutants.
        seed: Seed of all random numbers.
        native_seconds: Maximum time of running; a share of the mutants is run if it does not suffice.
    """
    tally, began = Tally(), time.monotonic()
    subjects = [_Subject.of(target, folders[target.bundle]) for target in FORMATS[name]]
    number = 0
    while tally.mutants < count:
        subject = subjects[number % len(subjects)]
        rng = random.Random(zlib.crc32(f"{seed} {name} {number}".encode()))
        mutant = subject.target.mutate(rng, subject.valid)
        number += 1
        if mutant == subject.valid:
            tally.unchanged += 1
            continue
        tally.mutants += 1
        run = tally.native_seconds < native_seconds * tally.mutants / count
        try:
            subject.path.write_bytes(mutant)
            _try(tally, subject, runner, run=run, example=f"{number - 1} {subject.target.name}")
        finally:
            subject.restore()
    tally.seconds = round(time.monotonic() - began, 1)
    tally.native_seconds = round(tally.native_seconds, 1)
    return tally


@dataclass(frozen=True)
class _Subject:
    """A valid file in its bundle."""

    target: Target
    folder: Path
    valid: bytes
    manifest: bytes
    parts: Manifest

    @classmethod
    def of(cls, target: Target, folder: Path) -> _Subject:
        manifest = (folder / MANIFEST_NAME).read_bytes()
        parts = parse_manifest(manifest, origin=MANIFEST_NAME)
        return cls(target, folder, (folder / target.name).read_bytes(), manifest, parts)

    @property
    def path(self) -> Path:
        return self.folder / self.target.name

    def restore(self) -> None:
        self.path.write_bytes(self.valid)
        (self.folder / MANIFEST_NAME).write_bytes(self.manifest)

    def keeps_old_digest(self) -> bool:
        """Return whether `verify` accepts the mutant with the old digest and its new size."""
        name = self.target.name
        file = msgspec.structs.replace(self.parts.files[name], size=self.path.stat().st_size)
        try:
            Bundle(self.folder, msgspec.structs.replace(self.parts, files={name: file})).verify()
        except ModelError:
            return False
        return True

    def is_refused(self) -> bool:
        """Return whether opening refuses the bundle with an updated manifest.

        The changed file's own check comes first, because it refuses most mutants.
        """
        name = self.target.name
        try:
            if name != MANIFEST_NAME:
                check = header_checks.header_checks(self.folder, self.parts).get(name)
                if check is not None and header_checks.run_check(check, self.path):
                    return True
                self._update_manifest()
            Bundle.open(self.folder)
        except MtllmError as error:
            if "\n" in str(error):
                raise ValueError(f"more than one line: {error}") from None
            return True
        return False

    def _update_manifest(self) -> None:
        content = self.path.read_bytes()
        file = FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        parts = msgspec.structs.replace(self.parts, files=self.parts.files | {self.target.name: file})
        (self.folder / MANIFEST_NAME).write_bytes(parts.to_json())


def _try(tally: Tally, subject: _Subject, runner: Runner, *, run: bool, example: str) -> None:
    if subject.target.name != MANIFEST_NAME:
        tally.digest_checked += 1
        if subject.keeps_old_digest():
            tally.note("digest_missed", example)
    began = time.process_time()
    try:
        refused = subject.is_refused()
    except Exception as error:
        tally.note("python_errors", f"{example}: {type(error).__name__} {error}"[:300])
        return
    used = time.process_time() - began
    tally.slowest_open_seconds = round(max(tally.slowest_open_seconds, used), 3)
    if used > SECONDS:
        tally.note("hung", f"{example}: opening took {used:.1f} s")
    elif refused:
        tally.refused_before_native_load += 1
    elif not run:
        tally.accepted_not_run += 1
    else:
        begun = time.monotonic()
        outcome, reason = runner.run(subject.folder)
        tally.native_seconds += time.monotonic() - begun
        if outcome in ("crashed", "hung", "python_errors"):
            tally.note(outcome, f"{example}: {reason}")
        else:
            setattr(tally, outcome, getattr(tally, outcome) + 1)
            if reason:
                runner.reasons[_shape(reason)] += 1


def _shape(reason: str) -> str:
    """Remove numbers and paths from a reason."""
    return "".join(" " if character.isdigit() else character for character in reason.rsplit("/", 1)[-1])[:100]


def to_markdown(report: dict[str, object], tallies: dict[str, Tally]) -> str:
    """Table of a run in Markdown."""
    columns = ("mutants", "refused_before_native_load", "refused_by_engine", "ran", "accepted_not_run")
    columns += ("crashed", "hung", "python_errors", "digest_checked", "digest_missed")
    lines = [
        "# Mutated files",
        "",
        f"`python -m tests.tools.fuzz.run`, seed {report['seed']}, {report['seconds']} s. Mutants of tiny bundles;",
        "the manifest's sizes and digests are made again, so that only the checks of the headers stand. What they let",
        "through is loaded and run in a child process (of some a share). `verify` is given the old digest, too.",
        "",
        "| format | " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, tally in tallies.items():
        numbers = " | ".join(f"{getattr(tally, column):,}" for column in columns)
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the formats of the command line, and write the report after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="mutants of each format")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--native-seconds", type=float, default=1e9, help="maximum time of running the mutants of a format"
    )
    parser.add_argument("--format", choices=FORMATS, action="append", dest="formats")
    parser.add_argument("-o", "--output", type=Path, help="write FILE.json and FILE.md")
    arguments = parser.parse_args()
    began = time.monotonic()
    tallies: dict[str, Tally] = {}
    with bundles() as folders:
        opened = Bundle.open(folders["f32"])
        settings = engine_settings(opened.path / "llm.gguf", opened.manifest.llm)
        runner = Runner(settings.switches)
        try:
            for name in arguments.formats or FORMATS:
                tallies[name] = try_format(
                    name, arguments.count, folders, runner, seed=arguments.seed, native_seconds=arguments.native_seconds
                )
                report = {
                    "seed": arguments.seed,
                    "seconds": round(time.monotonic() - began),
                    "formats": msgspec.to_builtins(tallies),
                    "engine_refusals": dict(runner.reasons.most_common(40)),
                }
                if arguments.output is not None:
                    arguments.output.with_suffix(".json").write_text(
                        json.dumps(report, indent=1) + "\n", encoding="utf-8"
                    )
                    arguments.output.with_suffix(".md").write_text(to_markdown(report, tallies), encoding="utf-8")
                print(f"{name}: {msgspec.json.encode(tallies[name]).decode()}", file=sys.stderr, flush=True)
        finally:
            runner.close()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
