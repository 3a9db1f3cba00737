"""Settings of the training loop."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LoopSettings:
    """How a stage is optimised: AdamW, linear warm-up, then linear decay to zero."""

    batch_size: int
    learning_rate: float
    warmup: float = 0.01
    """Fraction of the steps."""
    max_grad_norm: float = 1.0
    accumulate: int = 1
    """Parts in which a process reads its share of a step's batch, one after another: less memory, the same result."""
    save_every: int = 200
    """Steps between saves that a later run can resume from."""
    log_every: int = 20
    """Steps that an entry of the log averages; a save makes an entry, too."""
    seed: int = 0
    device: str = "cpu"
    dtype: str = "bfloat16"
    """Type of the matrix products: ``bfloat16`` (autocast) or ``float32``."""
    gradient_checkpointing: bool = False
    """Compute the LLM's activations twice instead of keeping them: for large LLMs on one GPU."""
    base_dtype: str | None = None
    """Type of the frozen weights: ``bfloat16``, ``float32`` or, of the LLM alone, ``nf4``; None takes `dtype`."""

    def factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate at one of the steps."""
        warmup = max(1, math.ceil(self.warmup * steps))
        return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Type in which frozen weights are kept, before the LLM's are packed in NF4."""
        name = self.dtype if self.base_dtype in (None, "nf4") else self.base_dtype
        return torch.float32 if name == "float32" else torch.bfloat16

    @property
    def nf4(self) -> bool:
        """Whether the LLM's frozen weights are packed in NF4."""
        return self.base_dtype == "nf4"

    def autocast(self) -> Any:
        """Context in which forward passes run."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)


def settings_dict(settings: LoopSettings) -> dict[str, Any]:
    """The settings that decide a run's result: not how often it is saved and logged, nor what it keeps in memory."""
    neutral = ("save_every", "log_every", "gradient_checkpointing", "accumulate")
    chosen = {name: value for name, value in asdict(settings).items() if value is not None}
    decisive = {name: value for name, value in chosen.items() if name not in neutral}
    return {**decisive, "device": torch.device(settings.device).type}
