"""Samples from processes: the best batch size of each contender, then all of them in turn."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import msgspec

from mtllm_edge.backends.probing.child_process import exit_reason
from mtllm_edge.errors import EngineError, MtllmError
from mtllm_edge_bench.jobs import BatchedPart, Job, Sample
from mtllm_edge_bench.runner.child import ERROR_CODES

CANDIDATES = (512, 1024, 2048)
"""Tokens in a batch that are tried."""
_CHILD = ("-m", "mtllm_edge_bench.runner.child")
_STAGES: dict[BatchedPart, tuple[str, ...]] = {
    "translate": ("translate",),
    "llm": ("llm",),
}
"""Part that batches for itself -> the stages whose time its batch size decides; else it is all of it."""

Run = Callable[[Job], Sample]


def run_job(job: Job) -> Sample:
    """Measure in a fresh process.

    Raises:
        MtllmError: The process refused, or died.
    """
    job = msgspec.structs.replace(job, started=time.time())
    child = subprocess.run(
        [sys.executable, *_CHILD],
        input=msgspec.json.encode(job),
        capture_output=True,
        # -m would put the user's folder first on the path.
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        check=False,
    )
    if child.returncode == 0:
        return msgspec.json.decode(child.stdout.splitlines()[-1], type=Sample)
    words = child.stderr.decode(errors="replace").strip().splitlines()
    if child.returncode > ERROR_CODES:
        error = MtllmError(words[-1] if words else f"{job.system} could not be measured")
        error.exit_code = child.returncode - ERROR_CODES
        raise error
    cause = "; ".join([exit_reason(child.returncode), *words[-1:]])
    raise EngineError(f"the process that measured {job.system} died ({cause}); see `mtllm-edge doctor`")


def tune_batch_size(job: Job, run: Run, note: Callable[[str], None]) -> Job:
    """The same job with the fastest of `CANDIDATES` for each part that batches for itself."""
    best: dict[BatchedPart, tuple[float, int]] = {}
    for tokens in CANDIDATES:
        sample = run(msgspec.structs.replace(job, batch_tokens=dict.fromkeys(job.batch_tokens, tokens)))
        note(f"{job.system}: {len(job.texts) / sample.seconds:.2f} texts/s in batches of {tokens} tokens")
        for knob in job.batch_tokens:
            seconds = sum(sample.stages[stage] for stage in _STAGES[knob]) if knob in _STAGES else sample.seconds
            best[knob] = min(best.get(knob, (seconds, tokens)), (seconds, tokens))
    return msgspec.structs.replace(job, batch_tokens={knob: tokens for knob, (_, tokens) in best.items()})


def run_interleaved(
    jobs: Mapping[str, Job], repeats: int, run: Run, note: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """Samples of each job: every contender once, then every contender again, so that a slow minute hits them all."""
    samples: dict[str, list[Sample]] = {name: [] for name in jobs}
    for number in range(repeats):
        for name, job in jobs.items():
            sample = run(job)
            note(f"repeat {number + 1} of {repeats}, {name}: {len(job.texts) / sample.seconds:.2f} texts/s")
            samples[name].append(sample)
    return samples
