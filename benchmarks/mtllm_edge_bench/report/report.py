"""What was measured, as one document."""

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
    """The repeats of one quantity."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """Of the values of all repeats."""
        return cls(*(_rounded(value) for value in (statistics.median(values), min(values), max(values))))


class SystemResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One contender in one setup."""

    batch_tokens: dict[BatchedPart, int]
    """Most tokens in a batch, the best of those tried."""
    texts_per_s: Statistic
    ms_per_text: dict[str, Statistic]
    """By stage."""
    tokens_per_text: dict[str, float]
    """Read by the ``encoder``, ``written`` by the translator, read by the ``llm``."""
    peak_rss_mb: Statistic
    load_s: Statistic
    first_prediction_s: Statistic
    cold_start_s: Statistic
    accuracy: float | None
    """Where labels are known."""


class Setup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One MT-LLM and what it was compared with."""

    description: str
    real_weights: bool
    encoder: str
    """Its name, for charts."""
    stride: int
    """Of the bridge."""
    llm_parameters: int
    """Weights of the LLM's body, the embeddings left out."""
    bundle_mb: float
    texts: int
    repeats: int
    measured: dict[str, SystemResult]
    ratios: dict[str, float]
    form: LlmBackend = "gguf"
    """That of the LLM which users get here unless they say otherwise."""

    def ratio(self, name: str) -> float | None:
        """A ratio of the form that users get, where it was measured."""
        return self.ratios.get(f"onnx_{name}" if self.form == "onnx" and f"onnx_{name}" in self.ratios else name)


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where it was measured; nothing that names the machine or its owner."""

    cpu: str
    cpu_flags: tuple[str, ...]
    cores: int
    """Open to the process."""
    memory_gb: float
    python: str
    versions: dict[str, str]
    """Of `DISTRIBUTIONS`, as far as they are installed."""
    builds: dict[str, str]
    """Engine -> what it says it was compiled for."""

    @classmethod
    def here(cls) -> Machine:
        """This one."""
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
    """The whole of `bench.json`."""

    date: str
    threads: int
    machine: Machine
    method: tuple[str, ...]
    """How to read the figures, a sentence each."""
    setups: dict[str, Setup]
    ratios: dict[str, float | None]
    """None: not measured in this run."""
    cold_start_s: float | None
    """Median time from the start of a process to its first prediction, of the first setup's MT-LLM."""


METHOD = (
    "Every sample is a process of its own that loads one contender, reads up to 16 texts, then answers all texts with "
    "the clock on; the contenders take turns; figures are medians of the repeats, with their lowest and highest.",
    "All contenders have the same texts, threads, quantisation and batches: texts of similar length up to a budget of "
    "tokens, for each contender the best of those tried.",
    "Weights and programs may lie in the system's file cache when a process starts; what is safe on the machine has "
    "been probed before.",
    "Encoder and LLM of an MT-LLM work side by side, unless they take turns: its stages add up to more than its time.",
    "Ratios are of texts per second, MT-LLM over the other. Translate-test is greedy unless its name has a beam. Both "
    "have their LLM in GGUF unless the name says ONNX; over_torch is of the form that users get on this machine.",
)


def make_report(setups: Mapping[str, Setup], ratios: Mapping[str, float | None], *, threads: int) -> Report:
    """Put setups together with the machine that they ran on."""
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
    """The repeats of one contender.

    Args:
        job: What was asked.
        samples: The repeats.
        labels: The right answers, where they are known.
    """
    texts = len(job.texts)
    found = samples[0].labels
    accuracy = None
    if labels is not None and found:
        accuracy = sum(mine == right for mine, right in zip(found, labels, strict=True)) / texts
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
    """MT-LLM over each other contender, and its memory over its size on disk."""
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
    """Four significant digits: the fifth is noise."""
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
