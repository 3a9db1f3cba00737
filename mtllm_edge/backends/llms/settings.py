"""Settings of llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """How llama.cpp is used on this machine."""

    extra_buffers: bool
    """Weights repacked for faster kernels (and for AMX, where the CPU has it)."""
    flash_attention: bool
    note: str
    """Why these: one sentence for people."""
    gpu_layers: int = 0
    """Layers of the LLM that llama.cpp puts on the GPU; one more than the LLM has is all of it."""

    @property
    def switches(self) -> tuple[bool, bool]:
        """The settings without the reason."""
        return self.extra_buffers, self.flash_attention
