"""A bundle, measured beside what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mtllm_edge.backends.cpu import read_cpu
from mtllm_edge.backends.probing.llm_backend import choose_backend
from mtllm_edge.bundle.formats import gguf, onnx
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge_bench.jobs import BatchedPart, Job, System
from mtllm_edge_bench.report.report import Setup, SystemResult, setup_ratios, summarize
from mtllm_edge_bench.runner.corpus import Corpus
from mtllm_edge_bench.runner.measure import Run, run_interleaved, run_job, tune_batch_size
from mtllm_edge_bench.systems.systems import BEAMS

TORCH: tuple[System, ...] = ("torch_float32", "torch_bfloat16")


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    bundle: Path
    task: str
    corpus: Corpus
    threads: int
    repeats: int
    translator: Path | None = None
    reader: Path | None = None
    """Translate-test runs where both are given."""
    checkpoint: Path | None = None
    """The stack in torch, which runs where it is given, in float32 and bfloat16."""
    real_weights: bool = True
    serial: bool = False
    """Whether the MT-LLM runs with encoder and LLM in turns, too."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Told what was measured, line by line."""


def measure_setup(plan: Plan, *, run: Run = run_job) -> Setup:
    """Find each contender's best batch size, then measure all of them in turn.

    Raises:
        MtllmError: A contender refused, or its process died.
    """
    stack = tune_batch_size(_job(plan, "mt_llm"), run, plan.note)
    jobs = {"mt_llm": stack}
    if plan.serial:
        jobs["mt_llm_serial"] = msgspec.structs.replace(stack, system="mt_llm_serial")
    if Bundle.open(plan.bundle).manifest.llm_onnx is not None:
        jobs["mt_llm_onnx"] = tune_batch_size(_job(plan, "mt_llm_onnx"), run, plan.note)
    if plan.translator is not None and plan.reader is not None:
        jobs |= {name: tune_batch_size(_job(plan, name), run, plan.note) for name in BEAMS}
    if plan.checkpoint is not None:
        fast = [name for name in TORCH if name != "torch_bfloat16" or has_bfloat16()]
        jobs |= {name: tune_batch_size(_job(plan, name), run, plan.note) for name in fast}
    jobs["engines"] = msgspec.structs.replace(stack, system="engines")
    samples = run_interleaved(jobs, plan.repeats, run, plan.note)
    measured = {name: summarize(job, samples[name], plan.corpus.labels) for name, job in jobs.items()}
    return describe(plan, measured)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; where it does not, PyTorch takes many times as long."""
    return any(flag in ("avx512_bf16", "amx_bf16", "bf16") for flag in read_cpu().flags)


def _job(plan: Plan, system: System) -> Job:
    corpus = plan.corpus
    knobs: tuple[BatchedPart, ...] = ("translate", "llm") if system in BEAMS else ("stack",)
    return Job(
        system=system,
        bundle=str(plan.bundle),
        translator=None if plan.translator is None else str(plan.translator),
        checkpoint=None if plan.checkpoint is None else str(plan.checkpoint),
        reader=None if plan.reader is None else str(plan.reader),
        task=plan.task,
        language=corpus.language,
        threads=plan.threads,
        batch_tokens=dict.fromkeys(knobs, 0),
        texts=tuple(corpus.texts),
        english=None if corpus.english is None else tuple(corpus.english),
        written=None if corpus.written is None else tuple(corpus.written),
    )


def describe(plan: Plan, measured: Mapping[str, SystemResult]) -> Setup:
    """What was measured of which bundle."""
    bundle = Bundle.open(plan.bundle)
    manifest = bundle.manifest
    unread = {form.file for form in manifest.llms[1:]}
    bundle_mb = round(sum(file.size for name, file in manifest.files.items() if name not in unread) / 1e6, 1)
    return Setup(
        description=f"{manifest.name}: encoder {manifest.encoder.family} {manifest.encoder.quantization}, "
        f"bridge {manifest.bridge.kind} (stride {manifest.bridge.stride}), LLM {manifest.llm.n_layer} layers of "
        f"{manifest.llm.n_embd}, " + " and ".join(f"{form.quantization} {form.backend}" for form in manifest.llms),
        real_weights=plan.real_weights,
        encoder=f"{manifest.encoder.family} {manifest.encoder.d_model}",
        stride=manifest.bridge.stride,
        llm_parameters=_parameters(plan.bundle, manifest.llm),
        bundle_mb=bundle_mb,
        texts=len(plan.corpus.texts),
        repeats=plan.repeats,
        measured=dict(measured),
        ratios=setup_ratios(measured, bundle_mb),
        form=choose_backend(bundle, plan.threads).llm.backend,
    )


def _parameters(folder: Path, llm: LlmSpec) -> int:
    """Weights of the LLM body; scales and what stands for a vocabulary are none."""
    if llm.backend == "gguf":
        shapes = gguf.read_header(folder / llm.file).shapes
        return sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("token_embd"))
    stored = onnx.read_graph(folder / llm.file).initializers
    return sum(
        math.prod(shape) for name, (_, shape) in stored.items() if name.endswith((".weight", ".weight_quantized"))
    )
