"""Encoder and LLM tried on a GPU, in child processes, before anything is loaded into the user's process.

Drivers can end a process or compute nonsense as CPU kernels can, so a child (`mtllm_edge.llms.probe`,
`mtllm_edge.gpu_child`) computes with random inputs, and the numbers are compared with the CPU's. What is learned is kept
by GPU, build and model; a mere refusal, as for want of memory, is not: it may be over the next time.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import msgspec

from mtllm_edge import children
from mtllm_edge.answers import recall, remember
from mtllm_edge.manifest import Encoder, Llm
from mtllm_edge.safety import (
    MIN_COSINE,
    PLAIN,
    EngineSettings,
    Failure,
    NoChildError,
    ask_child,
    engine_settings,
    machine_key,
    min_cosine,
    pooled_by_child,
)

_CHILD = "mtllm_edge.gpu_child"
_TRIAL_VERSION = "1"
_LIBRARY = re.compile(r"(?:lib)?ggml-(cuda|metal|vulkan|hip|sycl|opencl|musa|cann)\b")


def look() -> Seen: