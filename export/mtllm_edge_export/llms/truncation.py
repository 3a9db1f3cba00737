"""Keep the first layers of a checkpoint's LLM, and measure how many predictions that changes.

The heads were trained on the vectors of all layers, so the effect of a truncation is measured and logged.
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
    """Yield a temporary checkpoint with fewer LLM layers and the adapter of those layers; other files are linked.

    Raises:
        UsageError: The LLM does not have more layers than that.
    """
    config = StackConfig.load(checkpoint)
    depth = LlmShape.from_config(open_llm(config.llm.source, checkpoint).config, config.llm.layers).n_layer
    if layers >= depth:
        raise UsageError(f"the LLM of {checkpoint} has {depth} layers; choose fewer, or leave out --llm-layers")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in checkpoint.resolve().iterdir():
            if path.name not in (CONFIG_NAME, LORA_NAME):
                (folder / path.name).symlink_to(path, target_is_directory=path.is_dir())
        truncated = msgspec.structs.replace(config, llm=msgspec.structs.replace(config.llm, layers=layers))
        (folder / CONFIG_NAME).write_bytes(truncated.to_json())
        if lora := {name: tensor for name, tensor in read_lora(checkpoint).items() if _layer_index(name) < layers}:
            save_file(lora, folder / LORA_NAME)
        yield folder


def prediction_agreement(full: ReferenceOutputs, truncated: ReferenceOutputs) -> dict[str, float]:
    """Return for each task the share of the packaged sentences with the same prediction."""
    return {
        task: float((logits_NC.argmax(axis=-1) == truncated.logits_NC[task].argmax(axis=-1)).mean())
        for task, logits_NC in full.logits_NC.items()
    }


def _layer_index(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1
