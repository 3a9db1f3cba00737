"""Settings of llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """Settings of llama.cpp on this machine."""

    extra_buffers: bool
    """Whether weights are repacked for faster kernels (and for AMX, if the CPU has it)."""
    flash_attention: bool
    note: str
    """The reason for these settings, one sentence for people."""
    gpu_layers: int = 0
    """Layers of the LLM on the GPU; one more than the LLM has is all of it."""

    @property
    def switches(self) -> tuple[bool, bool]:
        """`extra_buffers` and `flash_attention`."""
        return self.extra_buffers, self.flash_attention
