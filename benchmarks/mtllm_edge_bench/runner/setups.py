"""Measure a bundle and the systems it is compared with."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from mtllm_edge.backends.cpu import read_cpu
from mtllm_edge.backends.probing.llm_backend import choose_backend
from mtllm_edge.bundle.formats import gguf, onnx
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import UsageError
from mtllm_edge.translator import TranslatorManifest
from mtllm_edge_bench.jobs import BatchedPart, Job, SystemName
from mtllm_edge_bench.report.report import Setup, SystemResult, setup_ratios, summarize
from mtllm_edge_bench.runner.corpus import Corpus, check_labels
from mtllm_edge_bench.runner.measure import run_interleaved, tune_batch_size
from mtllm_edge_bench.systems.english_llm import write_english_llm
from mtllm_edge_bench.systems.systems import BEAMS

TORCH: tuple[SystemName, ...] = ("torch_float32", "torch_bfloat16")


@dataclass(frozen=True)
class Plan:
    """A bundle, texts, and the systems to compare."""

    bundle: Path
    task: str
    corpus: Corpus
    threads: int
    repeats: int
    translator: Path | None = None
    english_llm: Path | None = None
    """Translate-test is measured if both are given."""
    checkpoint: Path | None = None
    """The stack in torch, measured in float32 and bfloat16 if given."""
    real_weights: bool = True
    serial: bool = False
    """Whether to measure the MT-LLM without overlap of encoder and LLM, too."""
    log: Callable[[str], None] = field(default=lambda _: None)
    """Receives a line per measurement."""


def measure_with_teacher(plan: Plan, teacher: Path | None) -> Setup:
    """Run `measure_setup`; a teacher is first exported to a temporary folder as the English LLM of translate-test.

    Raises:
        UsageError: A translator without a teacher or the reverse, the bundle's LLM is in ONNX, or the teacher does not
            have the task.
        MtllmError: The teacher cannot be exported, or a measurement failed.
    """
    if (plan.translator is None) != (teacher is None):
        raise UsageError("translate-test requires both --translator and --teacher, the LLM that reads the translations")
    if teacher is None or plan.translator is None:
        return measure_setup(plan)
    bundle = Bundle.open(plan.bundle)
    quantization = bundle.manifest.llm.quantization
    if quantization == "int8" or bundle.manifest.llm.backend == "onnx":
        raise UsageError(
            f"{plan.bundle} has its LLM in ONNX, but --teacher runs in GGUF; leave out --translator and --teacher"
        )
    TranslatorManifest.load(plan.translator)
    with tempfile.TemporaryDirectory(prefix="mtllm-edge-bench-") as name:
        plan.log("exporting the English LLM with its vocabulary")
        english_llm = write_english_llm(teacher, Path(name), quantization=quantization)
        check_labels(english_llm.tasks, bundle, plan.task, teacher)
        return measure_setup(replace(plan, english_llm=Path(name)))


def measure_setup(plan: Plan) -> Setup:
    """Find the best batch size of each system, then measure all of them in turns.

    Raises:
        MtllmError: A measurement failed.
    """
    stack = tune_batch_size(_job(plan, "mt_llm"), plan.log)
    jobs = {"mt_llm": stack}
    if plan.serial:
        jobs["mt_llm_serial"] = msgspec.structs.replace(stack, system="mt_llm_serial")
    systems: list[SystemName] = []
    if Bundle.open(plan.bundle).manifest.llm_onnx is not None:
        systems.append("mt_llm_onnx")
    if plan.translator is not None and plan.english_llm is not None:
        systems += BEAMS
    if plan.checkpoint is not None:
        systems += [name for name in TORCH if name != "torch_bfloat16" or has_bfloat16()]
    jobs |= {name: tune_batch_size(_job(plan, name), plan.log) for name in systems}
    jobs["engines"] = msgspec.structs.replace(stack, system="engines")
    samples = run_interleaved(jobs, plan.repeats, plan.log)
    return _summarize(plan, {name: summarize(job, samples[name], plan.corpus.labels) for name, job in jobs.items()})


def has_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions; PyTorch is many times slower without."""
    return any(flag in ("avx512_bf16", "amx_bf16", "bf16") for flag in read_cpu().flags)


def _job(plan: Plan, system: SystemName) -> Job:
    corpus = plan.corpus
    parts: tuple[BatchedPart, ...] = ("translate", "llm") if system in BEAMS else ("stack",)
    return Job(
        system=system,
        bundle=str(plan.bundle),
        translator=None if plan.translator is None else str(plan.translator),
        checkpoint=None if plan.checkpoint is None else str(plan.checkpoint),
        english_llm=None if plan.english_llm is None else str(plan.english_llm),
        task=plan.task,
        language=corpus.language,
        threads=plan.threads,
        batch_tokens=dict.fromkeys(parts, 0),
        texts=tuple(corpus.texts),
        translations=None if corpus.translations is None else tuple(corpus.translations),
        translation_lengths=None if corpus.translation_lengths is None else tuple(corpus.translation_lengths),
    )


def _summarize(plan: Plan, measured: Mapping[str, SystemResult]) -> Setup:
    """Return the measurements with a description of the bundle."""
    bundle = Bundle.open(plan.bundle)
    manifest = bundle.manifest
    unused = {llm.file for llm in manifest.llms[1:]}
    bundle_mb = round(sum(file.size for name, file in manifest.files.items() if name not in unused) / 1e6, 1)
    return Setup(
        description=f"{manifest.name}: encoder {manifest.encoder.family} {manifest.encoder.quantization}, "
        f"bridge {manifest.bridge.kind} (stride {manifest.bridge.stride}), LLM {manifest.llm.n_layer} layers of "
        f"{manifest.llm.n_embd}, " + " and ".join(f"{llm.quantization} {llm.backend}" for llm in manifest.llms),
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
    """Return the number of weights of the LLM body, without quantization scales and the stub vocabulary."""
    if llm.backend == "gguf":
        shapes = gguf.read_header(folder / llm.file).shapes
        return sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("token_embd"))
    stored = onnx.read_graph(folder / llm.file).initializers
    return sum(
        math.prod(shape) for name, (_, shape) in stored.items() if name.endswith((".weight", ".weight_quantized"))
    )
