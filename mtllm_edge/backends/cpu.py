"""The processor, the default number of threads, and environment variables of the engines."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import UsageError

MAX_DEFAULT_THREADS = 8
MAX_THREADS = 256
"""Upper limit; with 100,000 llama.cpp ended the process."""


@dataclass(frozen=True)
class Cpu:
    """The processor, as the system describes it."""

    model: str
    flags: tuple[str, ...]
    """Instruction sets, sorted; empty if the system does not list them."""


def read_cpu() -> Cpu:
    """Return the processor's name and instruction sets."""
    info: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux
        pass
    flags = info.get("flags") or info.get("Features") or ""
    model = info.get("model name") or platform.processor() or "unknown"
    return Cpu(f"{model} ({platform.machine()})", tuple(sorted(flags.split())))


def available_cores() -> int:
    """Return the number of CPU cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Return the default number of threads of an engine: the cores available to this process, at most 8.

    With more threads than cores, every layer waits for the slowest; beyond 8, memory bandwidth is the limit.
    """
    return min(available_cores(), MAX_DEFAULT_THREADS)


def check_threads(threads: int) -> None:
    """Raise UsageError unless the number of threads is from 1 to `MAX_THREADS`."""
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}, expected 1 to {MAX_THREADS}")


def configure_openmp() -> None:
    """Make waiting OpenMP threads sleep instead of spin; must run before an engine's library is loaded.

    CTranslate2 and llama.cpp synchronize their threads many times per layer. libgomp spins there by default, and if
    another process uses one of the cores, the spinning threads delay the one that they wait for: throughput fell from
    600 to 17 tokens per second once. A 135 M LLM on two cores, one of them busy, reached 600 tokens per second with
    sleeping and 370 with spinning threads; on an idle machine sleeping costs up to 4 %. The user's values are kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def disable_telemetry() -> None:
    """Disable ONNX Runtime's telemetry; must run before its library is loaded.

    The telemetry of release 1.32 for Linux starts on import: it writes into the user's cache folder and the temporary
    folder, and looks up the collector's address some seconds later. `disable_telemetry_events` is too late for it. A
    value set by the user is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
