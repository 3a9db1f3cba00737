"""Messages between the benchmark and its measuring processes: a job in, a sample out, as JSON."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

SystemName: TypeAlias = Literal[
    "mt_llm",
    "mt_llm_serial",
    "mt_llm_onnx",
    "translate_test",
    "translate_test_beam4",
    "torch_float32",
    "torch_bfloat16",
    "engines",
]
BatchedPart: TypeAlias = Literal["stack", "translate", "llm"]


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One system on all texts, measured in its own process."""

    system: SystemName
    bundle: str
    """Folder of the MT-LLM."""
    translator: str | None = None
    """Folder made by `export-translator`."""
    checkpoint: str | None = None
    """Folder of the stack in torch, or of a `RANDOM_STACK_NAME` file."""
    english_llm: str | None = None
    """Folder made by `write_english_llm`."""
    task: str
    language: str | None = None
    """Language code of all texts, for encoders that require one."""
    threads: int
    batch_tokens: dict[BatchedPart, int]
    """Token budget of a batch, for each part with its own batches."""
    texts: tuple[str, ...]
    translations: tuple[str, ...] | None = None
    """Replaces the output of a random translator as input of the English LLM in translate-test."""
    translation_lengths: tuple[int, ...] | None = None
    """Number of tokens that a random translator is forced to write for each text."""
    started: float = 0.0
    """Start of the process, in `time.time()` seconds."""


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measurements of one process."""

    seconds: float
    """Time of one pass over the texts after the warm-up; for engines alone, the sum of their stages."""
    stages: dict[str, float]
    """Stage -> seconds."""
    tokens: dict[str, int]
    """Number of tokens read by the ``encoder``, ``written`` by a translator, and read by the ``llm``."""
    labels: tuple[str, ...]
    """Predicted labels; empty for engines alone."""
    load_s: float
    """Time to load the models, after the imports."""
    first_prediction_s: float
    """Time of the first prediction, after loading."""
    cold_start_s: float
    """Time from the start of the process to its first prediction; files may be in the system's cache."""
    peak_rss: int
    """Peak resident memory in bytes."""
