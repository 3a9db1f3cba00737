"""The second half of translate-test: the fine-tuned English LLM in GGUF with its vocabulary, and its heads.

It runs in the same engine, with the same quantization and batching as the LLM of an MT-LLM. On disk::

    english_llm.json  this module's `EnglishLlmManifest`
    llm.gguf          the LLM with its token embeddings, adapter merged
    tokenizer.json    the LLM's tokenizer
    tasks/            heads, as in a bundle
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mtllm_edge.backends.probing.llama_cpp import engine_settings
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.manifest import LLM_NAME, TOKENIZER_NAME
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.tasks.head import Head
from mtllm_edge.tokenization.batching import plan_batches
from mtllm_edge.tokenization.encoding import Encoding
from mtllm_edge.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mtllm_edge.bundle.manifest import GgufQuantization

ENGLISH_LLM_NAME = "english_llm.json"


class EnglishLlmManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`english_llm.json`."""

    name: str
    llm: manifest.LlmSpec
    max_tokens: int
    """Longest text in tokens, special tokens included."""
    prefix_tokens: tuple[str, ...]
    suffix_tokens: tuple[str, ...]
    tasks: dict[str, manifest.TaskSpec]


class EnglishLlm:
    """A loaded English LLM."""

    def __init__(self, folder: Path, *, threads: int, batch_tokens: int) -> None:
        """Load a folder written by `write_english_llm`.

        Raises:
            EngineError: llama.cpp cannot load the file.
        """
        self.manifest = msgspec.json.decode((folder / ENGLISH_LLM_NAME).read_bytes(), type=EnglishLlmManifest)
        self._tokenizer = Tokenizer(
            folder / TOKENIZER_NAME,
            prefix_tokens=self.manifest.prefix_tokens,
            suffix_tokens=self.manifest.suffix_tokens,
            max_tokens=self.manifest.max_tokens,
        )
        settings = engine_settings(folder / LLM_NAME, self.manifest.llm)
        from mtllm_edge.backends.llms.llama_cpp import GgufLlm  # after the probe

        self._batch_tokens = max(batch_tokens, self.manifest.max_tokens)
        self._llm = GgufLlm(
            folder / LLM_NAME, self.manifest.llm, settings=settings, threads=threads, max_tokens=self._batch_tokens
        )
        self._heads = {name: Head.load(folder, task) for name, task in self.manifest.tasks.items()}

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize texts."""
        return self._tokenizer.encode(texts)

    def pool(self, encoded: Sequence[Encoding]) -> NDArray[np.float32]:
        """Return pooled vectors (texts, n_embd)."""
        pooled_NE = np.empty((len(encoded), self.manifest.llm.n_embd), np.float32)
        for batch in plan_batches([len(text.ids) for text in encoded], max_tokens=self._batch_tokens):
            pooled_NE[batch] = self._llm.pool_tokens([encoded[index].ids for index in batch])
        return pooled_NE

    def labels(self, task: str, pooled_NE: NDArray[np.float32]) -> list[str]:
        """Return the most probable label of each vector."""
        head = self._heads[task]
        return [head.labels[index] for index in head.probabilities(pooled_NE).argmax(axis=1)]


def write_english_llm(checkpoint: Path, folder: Path, *, quantization: GgufQuantization) -> EnglishLlmManifest:
    """Export a fine-tuned LLM.

    Args:
        checkpoint: Folder written by `mtllm-edge train finetune`; only tasks of single texts are exported.
        folder: Existing empty folder to write to.
        quantization: Type of the LLM's weights.

    Raises:
        UsageError: The checkpoint has an encoder.
        ModelError: The checkpoint is damaged.
    """
    from mtllm_edge_export.llms.body import LlmBody
    from mtllm_edge_export.llms.gguf import write_llm
    from mtllm_edge_export.llms.source import open_llm
    from mtllm_edge_train.checkpoints.config import StackConfig, resolve_source
    from mtllm_edge_train.checkpoints.tensors import read_head, read_lora
    from mtllm_edge_train.models.llm_tokenization import MAX_TOKENS, special_token_template
    from mtllm_edge_train.models.stack import load_llm_tokenizer

    config = StackConfig.load(checkpoint)
    if config.encoder is not None:
        raise UsageError(f"{checkpoint} has an encoder; --teacher must be an LLM of `mtllm-edge train finetune`")
    tokenizer = load_llm_tokenizer(resolve_source(config.llm.source, checkpoint))
    weights = open_llm(config.llm.source, checkpoint)
    if len(tokenizer) > weights.config["vocab_size"]:
        raise ModelError(f"{config.llm.source}: the tokenizer has more tokens than the LLM has embeddings")
    frame = special_token_template(tokenizer)
    body = LlmBody(
        weights,
        config.llm.layers,
        config.llm.attention,
        read_lora(checkpoint),
        config.lora.scale if config.lora is not None else 0.0,
        max_tokens=MAX_TOKENS,
        vocabulary=True,
    )
    summary = write_llm(folder / LLM_NAME, body, quantization)
    (folder / TOKENIZER_NAME).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    tasks = {}
    for name, task in config.tasks.items():
        if task.kind != "sequence":
            continue
        weight, bias = read_head(checkpoint, name)
        tasks[name] = write_head(
            folder, name, task.labels, {"weight": weight} | ({} if bias is None else {"bias": bias})
        )
    english_llm = EnglishLlmManifest(
        name=config.name,
        llm=summary.spec(quantization, config.llm.attention),
        max_tokens=MAX_TOKENS,
        prefix_tokens=tuple(tokenizer.convert_ids_to_tokens(list(frame.prefix))),
        suffix_tokens=tuple(tokenizer.convert_ids_to_tokens(list(frame.suffix))),
        tasks=tasks,
    )
    (folder / ENGLISH_LLM_NAME).write_bytes(msgspec.json.encode(english_llm))
    return english_llm


def write_head(
    folder: Path, name: str, labels: tuple[str, ...], arrays: dict[str, NDArray[np.float32]]
) -> manifest.TaskSpec:
    """Write a head of single texts at its path in a bundle, and return its manifest entry."""
    path = folder / "tasks" / name / "head.safetensors"
    path.parent.mkdir(parents=True)
    save_file(arrays, path)
    return manifest.TaskSpec(kind="sequence", labels=labels, head=path.relative_to(folder).as_posix())
