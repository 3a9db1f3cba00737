"""What this computer is, and how many of its cores the engines may use."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import UsageError

MAX_DEFAULT_THREADS = 8
MAX_THREADS = 256
"""Most that are asked of an engine; with 100,000 llama.cpp ended the process."""


@dataclass(frozen=True)
class Cpu:
    """The processor, as far as the system tells."""

    model: str
    flags: tuple[str, ...]
    """Instruction sets, sorted; empty where the system does not list them."""


def read_cpu() -> Cpu:
    """The processor's name and its instruction sets."""
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
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Threads that an engine takes unless told otherwise: the cores open to this process, at most 8.

    More threads than cores make every layer wait for the slowest; beyond 8, memory bandwidth is the limit.
    """
    return min(available_cores(), MAX_DEFAULT_THREADS)


def check_threads(threads: int) -> None:
    """Refuse a number of threads that an engine cannot have.

    Raises:
        UsageError: It is not from 1 to `MAX_THREADS`.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}, expected 1 to {MAX_THREADS}")


def configure_openmp() -> None:
    """Make OpenMP threads sleep instead of spin while they wait; must run before an engine's library is loaded.

    Both engines meet at a barrier many times per layer. libgomp spins there, and when another busy process holds one
    of the cores, the spinning threads take the time of the one they wait for: throughput was once seen to fall from
    600 to 17 tokens per second. A 135 M LLM on two cores, one of them taken by another process: 600 tokens per second
    asleep against 370 spinning; on a quiet machine sleeping costs up to 4 %. Values that the user has set are kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def disable_telemetry() -> None:
    """Keep ONNX Runtime from reporting its use to its makers; must run before its library is loaded.

    Release 1.32 for Linux has telemetry, which begins with the import: it writes into the user's cache folder and into
    that of temporary files, and some seconds later asks for the collector's address; `disable_telemetry_events` comes
    too late for it. A value that the user has set is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
