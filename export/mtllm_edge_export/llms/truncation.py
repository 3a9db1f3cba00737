"""A checkpoint whose LLM is cut to its first layers, and how much of its tasks' answers that changes.

Heads were trained on the vectors of all layers, so a cut is measured and told, and not silently made.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from safetensors.numpy import save_file

from mtllm_edge.errors import UsageError
from mtllm_edge_export.llms.config import LlmShape
from mtllm_edge_export.llms.source import open_llm
from mtllm_edge_export.parity import ReferenceOutputs
from mtllm_edge_train.checkpoints.config import CONFIG_NAME, LORA_NAME, StackConfig
from mtllm_edge_train.checkpoints.tensors import read_lora

_LAYER = re.compile(r"layers\.(\d+)\.")


@contextmanager
def truncated_checkpoint(checkpoint: Path, layers: int) -> Iterator[Path]:
    """A temporary checkpoint that shares everything but the LLM's depth and the adapter of the layers left out.

    Raises:
        UsageError: The LLM has no more layers than that.
    """
    config = StackConfig.load(checkpoint)
    depth = LlmShape.read(open_llm(config.llm.source, checkpoint).config, config.llm.layers).n_layer
    if layers >= depth:
        raise UsageError(f"the LLM of {checkpoint} has {depth} layers; --llm-layers keeps fewer, or is left out")
    with tempfile.TemporaryDirectory() as scratch:
        for path in checkpoint.resolve().iterdir():
            if path.name not in (CONFIG_NAME, LORA_NAME):
                (Path(scratch) / path.name).symlink_to(path, target_is_directory=path.is_dir())
        short = msgspec.structs.replace(config, llm=msgspec.structs.replace(config.llm, layers=layers))
        (Path(scratch) / CONFIG_NAME).write_bytes(short.to_json())
        kept = {name: tensor for name, tensor in read_lora(checkpoint).items() if _layer(name) < layers}
        if kept:
            save_file(kept, Path(scratch) / LORA_NAME)
        yield Path(scratch)


def prediction_agreement(whole: ReferenceOutputs, short: ReferenceOutputs) -> dict[str, float]:
    """Share of the packaged sentences that a task answers as it did before, by task."""
    return {
        task: float((logits_NC.argmax(axis=-1) == short.logits_NC[task].argmax(axis=-1)).mean())
        for task, logits_NC in whole.logits_NC.items()
    }


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1
