"""Measure systems in child processes: find the best batch size of each, then take samples in turns."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping

import msgspec

from mtllm_edge.backends.probing.child_process import exit_reason
from mtllm_edge.errors import EngineError, MtllmError
from mtllm_edge_bench.jobs import BatchedPart, Job, Sample
from mtllm_edge_bench.runner.child import ERROR_CODES

CANDIDATES = (512, 1024, 2048)
"""Token budgets of a batch to try."""
_CHILD = ("-m", "mtllm_edge_bench.runner.child")
_STAGES: dict[BatchedPart, tuple[str, ...]] = {
    "translate": ("translate",),
    "llm": ("llm",),
}
"""Part with its own batches -> the stages whose time depends on them; for others, it is the total time."""

Log = Callable[[str], None]


def run_job(job: Job) -> Sample:
    """Measure in a new process, which ends with this one.

    Raises:
        MtllmError: The job failed with an error of this project, or the process died.
    """
    job = msgspec.structs.replace(job, started=time.time())
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, *_CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # otherwise -m would put the working folder first on the path
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # the child died early; its exit code says more
                child.stdin.write(msgspec.json.encode(job) + b"\n")
                child.stdin.flush()  # it stays open: the child ends when it closes
            output = child.stdout.read()
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            child.stdout.close()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    if code == 0:
        return msgspec.json.decode(output.splitlines()[-1], type=Sample)
    raise _child_error(job, code, lines)


def _child_error(job: Job, code: int, lines: list[str]) -> MtllmError:
    """Return the error of a child process with an exit code and lines on stderr."""
    if code > ERROR_CODES:
        error = MtllmError(lines[-1] if lines else f"{job.system} could not be measured")
        error.exit_code = code - ERROR_CODES
        return error
    cause = "; ".join([exit_reason(code), *lines[-1:]])
    return EngineError(f"the process that measured {job.system} died ({cause}); see `mtllm-edge doctor`")


def tune_batch_size(job: Job, log: Log) -> Job:
    """Return the job with the fastest of `CANDIDATES` for each part with its own batches."""
    best: dict[BatchedPart, tuple[float, int]] = {}
    for tokens in CANDIDATES:
        sample = run_job(msgspec.structs.replace(job, batch_tokens=dict.fromkeys(job.batch_tokens, tokens)))
        log(f"{job.system}: {len(job.texts) / sample.seconds:.2f} texts/s in batches of {tokens} tokens")
        for part in job.batch_tokens:
            seconds = sum(sample.stages[stage] for stage in _STAGES[part]) if part in _STAGES else sample.seconds
            best[part] = min(best.get(part, (seconds, tokens)), (seconds, tokens))
    return msgspec.structs.replace(job, batch_tokens={part: tokens for part, (_, tokens) in best.items()})


def run_interleaved(jobs: Mapping[str, Job], repeats: int, log: Log) -> dict[str, list[Sample]]:
    """Take samples of each job, all jobs once per repeat, so that slow periods of the machine affect all."""
    samples: dict[str, list[Sample]] = {name: [] for name in jobs}
    for number in range(repeats):
        for name, job in jobs.items():
            sample = run_job(job)
            log(f"repeat {number + 1} of {repeats}, {name}: {len(job.texts) / sample.seconds:.2f} texts/s")
            samples[name].append(sample)
    return samples
