"""The report of a benchmark."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from mtllm_edge.backends.cpu import available_cores, read_cpu
from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.diagnostics.doctor import ENGINES, inspect_engine
from mtllm_edge_bench.jobs import BatchedPart, Job, Sample

DISTRIBUTIONS = ("mtllm-edge", "ctranslate2", "llama-cpp-python", "torch", "transformers", "onnxruntime", "numpy")


class Statistic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Median and range of the repeats of one quantity."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """Summarize the values of all repeats."""
        return cls(*(_rounded(value) for value in (statistics.median(values), min(values), max(values))))


class SystemResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measurements of one system in one setup."""

    batch_tokens: dict[BatchedPart, int]
    """Token budget of a batch, the best of the candidates."""
    texts_per_s: Statistic
    ms_per_text: dict[str, Statistic]
    """Stage -> milliseconds."""
    tokens_per_text: dict[str, float]
    """Number of tokens read by the ``encoder``, ``written`` by the translator, and read by the ``llm``."""
    peak_rss_mb: Statistic
    load_s: Statistic
    first_prediction_s: Statistic
    cold_start_s: Statistic
    accuracy: float | None
    """None without labels."""


class Setup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One MT-LLM and the systems it was compared with."""

    description: str
    real_weights: bool
    encoder: str
    """Name of the encoder in charts."""
    stride: int
    """Stride of the bridge."""
    llm_parameters: int
    """Number of weights of the LLM body, without embeddings."""
    bundle_mb: float
    texts: int
    repeats: int
    measured: dict[str, SystemResult]
    ratios: dict[str, float]
    form: LlmBackend = "gguf"
    """The LLM backend that the runtime chooses by default on this machine."""

    def ratio(self, name: str) -> float | None:
        """Return a ratio for the default LLM backend, if it was measured."""
        return self.ratios.get(f"onnx_{name}" if self.form == "onnx" and f"onnx_{name}" in self.ratios else name)


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hardware and software of the measurement, without anything that identifies the machine."""

    cpu: str
    cpu_flags: tuple[str, ...]
    cores: int
    """Number of cores available to the process."""
    memory_gb: float
    python: str
    versions: dict[str, str]
    """Versions of the installed `DISTRIBUTIONS`."""
    builds: dict[str, str]
    """Engine -> the instruction sets it was compiled for."""

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine."""
        cpu = read_cpu()
        return cls(
            cpu=cpu.model,
            cpu_flags=cpu.flags,
            cores=available_cores(),
            memory_gb=_rounded(_memory() / 1e9),
            python=platform.python_version(),
            versions=_versions(),
            builds={name: inspect_engine(name).build for name in ENGINES},
        )


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of `bench.json`."""

    date: str
    threads: int
    machine: Machine
    method: tuple[str, ...]
    """Explanation of the method, one paragraph each."""
    setups: dict[str, Setup]
    ratios: dict[str, float | None]
    """None if not measured in this run."""
    cold_start_s: float | None
    """Median time from process start to the first prediction, of the first setup's MT-LLM."""


METHOD = (
    "Every sample has its own process, which loads one system, classifies up to 16 texts as warm-up, then all texts. "
    "The systems take turns. Figures are medians of the repeats, with minimum and maximum.",
    "All systems have the same texts, threads and quantization. Batches are of texts of similar length; the token "
    "budget of a batch is the best of several for each system.",
    "Weights and programs may be in the file cache of the system when a process starts. The settings that are safe on "
    "the machine were probed before.",
    "Encoder and LLM of an MT-LLM run in parallel unless stated otherwise, so the sum of its stages exceeds its time.",
    "Ratios are of texts per second, MT-LLM over the other system. Translate-test is greedy unless a beam is stated. "
    "LLMs are in GGUF unless ONNX is stated; over_torch is of the default LLM backend on this machine.",
)


def make_report(setups: Mapping[str, Setup], ratios: Mapping[str, float | None], *, threads: int) -> Report:
    """Make a report of setups, with a description of this machine."""
    first = next(iter(setups.values()))
    return Report(
        date=datetime.date.today().isoformat(),
        threads=threads,
        machine=Machine.here(),
        method=METHOD,
        setups=dict(setups),
        ratios=dict(ratios),
        cold_start_s=first.measured["mt_llm"].cold_start_s.median,
    )


def summarize(job: Job, samples: Sequence[Sample], labels: Sequence[str] | None) -> SystemResult:
    """Summarize the repeats of one system.

    Args:
        job: The job.
        samples: One sample per repeat.
        labels: Gold labels; None if unknown.
    """
    texts = len(job.texts)
    predictions = samples[0].labels
    accuracy = None
    if labels is not None and predictions:
        accuracy = sum(label == gold for label, gold in zip(predictions, labels, strict=True)) / texts
    stages = dict.fromkeys(stage for sample in samples for stage in sample.stages)
    return SystemResult(
        batch_tokens=job.batch_tokens,
        texts_per_s=Statistic.of([texts / sample.seconds for sample in samples]),
        ms_per_text={
            stage: Statistic.of([1000 * sample.stages.get(stage, 0) / texts for sample in samples]) for stage in stages
        },
        tokens_per_text={name: _rounded(count / texts) for name, count in samples[0].tokens.items()},
        peak_rss_mb=Statistic.of([sample.peak_rss / 1e6 for sample in samples]),
        load_s=Statistic.of([sample.load_s for sample in samples]),
        first_prediction_s=Statistic.of([sample.first_prediction_s for sample in samples]),
        cold_start_s=Statistic.of([sample.cold_start_s for sample in samples]),
        accuracy=None if accuracy is None else round(accuracy, 4),
    )


def setup_ratios(measured: Mapping[str, SystemResult], bundle_mb: float) -> dict[str, float]:
    """Return the speed of the MT-LLM over that of each other system, and its memory over its size on disk."""
    stack = measured["mt_llm"]
    rates = {name: figures.texts_per_s.median for name, figures in measured.items()}
    others = [name for name in rates if name.startswith(("translate_test", "torch_"))]
    ratios = {f"over_{name}": _rounded(rates["mt_llm"] / rates[name]) for name in others}
    if "mt_llm_onnx" in rates:
        ratios |= {f"onnx_over_{name}": _rounded(rates["mt_llm_onnx"] / rates[name]) for name in ["mt_llm", *others]}
    if "engines" in rates:
        ratios["pipeline_over_engines"] = _rounded(rates["mt_llm"] / rates["engines"])
        if "mt_llm_serial" in rates:
            ratios["serial_pipeline_over_engines"] = _rounded(rates["mt_llm_serial"] / rates["engines"])
    ratios["rss_over_bundle"] = _rounded(stack.peak_rss_mb.median / bundle_mb)
    return ratios


def _rounded(value: float) -> float:
    """Round to four significant digits; the rest is noise."""
    return float(f"{value:.4g}")


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return 0


def _versions() -> dict[str, str]:
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
