"""What the parent asks of a measuring process, and what it hears back: one JSON document each way."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

System: TypeAlias = Literal[
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
    """One contender on all texts, in a process of its own."""

    system: System
    bundle: str
    """Folder of the MT-LLM."""
    translator: str | None = None
    """Folder made by `export-translator`."""
    checkpoint: str | None = None
    """Folder of the stack in torch, or of `torch_stack.RANDOM_STACK_NAME`."""
    reader: str | None = None
    """Folder made by `write_english_llm`."""
    task: str
    language: str | None = None
    """Of all texts, for encoders that must be told."""
    threads: int
    batch_tokens: dict[BatchedPart, int]
    """Most tokens in a batch, of each part that batches for itself."""
    texts: tuple[str, ...]
    english: tuple[str, ...] | None = None
    """What the LLM of translate-test reads instead of the translations, where these are a random model's."""
    written: tuple[int, ...] | None = None
    """Tokens that the translator is made to write of each text, likewise."""
    started: float = 0.0
    """When the process was started, in `time.time()`."""


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one process measured."""

    seconds: float
    """Of the whole pass over the texts, engines warm; of bare engines, of their stages."""
    stages: dict[str, float]
    """Stage -> seconds of that pass."""
    tokens: dict[str, int]
    """``encoder``, ``written`` by a translator, ``llm`` -> tokens of that pass."""
    labels: tuple[str, ...]
    """What was answered; empty where only engines ran."""
    load_s: float
    """Loading the models, after the imports."""
    first_prediction_s: float
    """The first text, once the models are loaded."""
    cold_start_s: float
    """From the start of the process to its first prediction; files may be in the system's cache."""
    peak_rss: int
    """Most memory that the process held, in bytes."""
