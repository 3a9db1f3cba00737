"""The process that measures one contender: a job as JSON on stdin, a sample as JSON on the last line of stdout.

A process of its own for every sample: its memory is that contender's alone, and every sample tells a cold start.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from mtllm_edge.errors import MtllmError
from mtllm_edge_bench.jobs import Job, Sample

_WARM_UP = 16
"""Texts that are read before the clock runs: first batches make buffers, and find the weights on disk."""


def measure(job: Job) -> Sample:
    """Load a contender and let it answer all texts once, warm."""
    from mtllm_edge_bench.systems.systems import load_system

    begin = time.perf_counter()
    contender = load_system(job)
    loaded = time.perf_counter()
    contender.answer([0])
    first, cold_start_s = time.perf_counter(), time.time() - job.started
    contender.answer(range(min(_WARM_UP, len(job.texts))))
    contender.meter.reset()
    warm = time.perf_counter()
    labels = contender.answer(range(len(job.texts)))
    done = time.perf_counter()
    return Sample(
        seconds=sum(contender.meter.seconds.values()) if contender.bare else done - warm,
        stages=dict(contender.meter.seconds),
        tokens=dict(contender.meter.tokens),
        labels=tuple(labels),
        load_s=loaded - begin,
        first_prediction_s=first - loaded,
        cold_start_s=cold_start_s,
        peak_rss=peak_rss(),
    )


def peak_rss() -> int:
    """Most memory that this process has held, in bytes; 0 where the system does not tell."""
    try:
        # Not getrusage: there a process starts with the peak of the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def main() -> int:
    """Run one job; an error of this project is one line on stderr and its exit code."""
    try:
        sample = measure(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    except MtllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code + ERROR_CODES
    print(msgspec.json.encode(sample).decode())
    return 0


ERROR_CODES = 64
"""Added to the exit code of an error of this project, so that Python's own 1 and 2 mean a bug."""

if __name__ == "__main__":
    sys.exit(main())
