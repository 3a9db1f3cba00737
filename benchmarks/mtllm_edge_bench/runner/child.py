"""Measure one system: a job as a line of JSON on stdin, a sample as JSON on the last line of stdout.

Every sample has its own process, so that peak memory is that of the system alone, and every sample has a cold start.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from mtllm_edge.errors import MtllmError
from mtllm_edge_bench.jobs import Job, Sample

_WARM_UP = 16
"""Number of texts before the measurement: the first batches allocate buffers and read weights from disk."""


def measure(job: Job) -> Sample:
    """Load a system and classify all texts once, after a warm-up."""
    from mtllm_edge_bench.systems.systems import load_system

    begin = time.perf_counter()
    system = load_system(job)
    loaded = time.perf_counter()
    system.classify([0])
    first, cold_start_s = time.perf_counter(), time.time() - job.started
    system.classify(range(min(_WARM_UP, len(job.texts))))
    system.profiler.reset()
    warm = time.perf_counter()
    labels = system.classify(range(len(job.texts)))
    done = time.perf_counter()
    profiler = system.profiler
    return Sample(
        seconds=sum(profiler.seconds.values()) if system.engines_only else done - warm,
        stages=dict(profiler.seconds),
        tokens=dict(profiler.tokens),
        labels=tuple(labels),
        load_s=loaded - begin,
        first_prediction_s=first - loaded,
        cold_start_s=cold_start_s,
        peak_rss=peak_rss(),
    )


def peak_rss() -> int:
    """Return the peak resident memory of this process in bytes; 0 if unknown."""
    try:
        # Not getrusage: its peak includes that of the parent before exec.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def read_job() -> Job:
    """Read the job from stdin, and end this process when the parent closes stdin, which it does even if killed."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)

    def watch_parent() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()
    return job


def main() -> int:
    """Run one job; an error of this project is one line on stderr and an exit code above `ERROR_CODES`."""
    try:
        sample = measure(read_job())
    except MtllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code + ERROR_CODES
    print(msgspec.json.encode(sample).decode())
    return 0


ERROR_CODES = 64
"""Offset of the exit codes of this project's errors; Python's own 1 and 2 mean a bug."""

if __name__ == "__main__":
    sys.exit(main())
