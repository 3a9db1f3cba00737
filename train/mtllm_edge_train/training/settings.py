"""Settings of the training loop, and the schedule of the learning rate."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

_NEUTRAL = ("save_every", "log_every", "gradient_checkpointing", "accumulate")
"""Settings without an influence on the result."""


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the optimizer (AdamW, linear warm-up, linear decay to zero) and of the device."""

    batch_size: int
    learning_rate: float
    warmup: float = 0.01
    """Fraction of the steps."""
    max_grad_norm: float = 1.0
    accumulate: int = 1
    """Micro-batches per process and step: more of them need less memory and give the same result."""
    save_every: int = 200
    """Steps between saves that a run can be resumed from."""
    log_every: int = 20
    """Steps per log entry; each save adds an entry, too."""
    seed: int = 0
    device: str = "cpu"
    dtype: str = "bfloat16"
    """Type of the matrix products: ``bfloat16`` (autocast) or ``float32``."""
    gradient_checkpointing: bool = False
    """Compute the LLM's activations again in the backward pass instead of storing them: less memory for large LLMs."""
    base_dtype: str | None = None
    """Type of the frozen weights: ``bfloat16``, ``float32`` or, for the LLM only, ``nf4``; None means `dtype`."""

    def learning_rate_factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate at a step."""
        warmup = max(1, math.ceil(self.warmup * steps))
        return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Type of the frozen weights before the LLM's are quantized to NF4."""
        name = self.dtype if self.base_dtype in (None, "nf4") else self.base_dtype
        return torch.float32 if name == "float32" else torch.bfloat16

    @property
    def nf4(self) -> bool:
        """Whether the LLM's frozen weights are quantized to NF4."""
        return self.base_dtype == "nf4"

    def autocast(self) -> Any:
        """Context of forward passes."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def fingerprint_fields(self) -> dict[str, Any]:
        """Settings that the result depends on, without those that only affect memory, saves and the log."""
        fields = {name: value for name, value in asdict(self).items() if value is not None and name not in _NEUTRAL}
        return {**fields, "device": torch.device(self.device).type}
