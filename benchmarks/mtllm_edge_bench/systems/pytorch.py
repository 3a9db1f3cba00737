"""The same stack in PyTorch, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers

from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.embedder import load_tokenizer
from mtllm_edge.tasks.head import Head
from mtllm_edge.tokenization.batching import plan_batches
from mtllm_edge_bench.jobs import Job
from mtllm_edge_bench.systems.profiler import Profiler
from mtllm_edge_train.checkpoints.config import CONFIG_NAME
from mtllm_edge_train.models.loading import load_stack
from mtllm_edge_train.models.stack import LlmBody, Stack, pad_right

RANDOM_STACK_NAME = "random.json"
DTYPES = {"torch_float32": torch.float32, "torch_bfloat16": torch.bfloat16}
"""System -> type of weights and activations."""


class RandomStackConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`random.json`: a stack that gets random weights when it is loaded."""

    encoder: dict[str, Any]
    """Keys of transformers' `M2M100Config`."""
    llm: dict[str, Any]
    """Keys of transformers' `LlamaConfig`."""


class TorchStack:
    """The stack a bundle was exported from, or one of the same shape, with the bundle's heads."""

    engines_only = False

    def __init__(self, job: Job) -> None:
        """Load the stack, or create it with random weights."""
        assert job.checkpoint is not None
        torch.set_num_threads(job.threads)
        self._job, self.profiler = job, Profiler()
        bundle = Bundle.open(job.bundle)
        self._tokenizer = load_tokenizer(bundle)
        self._max_tokens = max(job.batch_tokens["stack"], bundle.manifest.encoder.max_tokens)
        self._head = Head.load(bundle.path, bundle.manifest.tasks[job.task])
        folder = Path(job.checkpoint)
        stack = load_stack(folder) if (folder / CONFIG_NAME).is_file() else _random_stack(folder, bundle)
        self._stack = stack.to(DTYPES[job.system]).eval()

    def classify(self, indices: Sequence[int]) -> list[str]:
        """Return labels; see `LoadedSystem`."""
        stack, stage, tokens = self._stack, self.profiler.stage, self.profiler.tokens
        with stage("tokenize"):
            encoded = self._tokenizer.encode([self._job.texts[index] for index in indices], language=self._job.language)
        labels = [""] * len(encoded)
        for batch in plan_batches([len(text.ids) for text in encoded], max_tokens=self._max_tokens):
            with torch.inference_mode():
                with stage("encode"):
                    ids_NL, mask_NL = pad_right([encoded[index] for index in batch])
                    hidden_NLD = stack.encode(ids_NL, mask_NL)
                with stage("bridge"):
                    inputs_NGD, mask_NG = stack.bridge(hidden_NLD, mask_NL)
                with stage("llm"):
                    pooled_NE = stack.pool(inputs_NGD, mask_NG).float().numpy()
            tokens["encoder"] += int(mask_NL.sum())
            tokens["llm"] += int(mask_NG.sum())
            for index, label in zip(batch, self._head.probabilities(pooled_NE).argmax(axis=1), strict=True):
                labels[index] = self._head.labels[label]
        return labels


def _random_stack(folder: Path, bundle: Bundle) -> Stack:
    config = msgspec.json.decode((folder / RANDOM_STACK_NAME).read_bytes(), type=RandomStackConfig)
    encoder = transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**config.encoder)).get_encoder()
    body = LlmBody(transformers.LlamaModel(transformers.LlamaConfig(**config.llm)), bidirectional=False, lora=None)
    return Stack(
        encoder,
        load_tokenizer(bundle),
        body,
        d_encoder=bundle.manifest.encoder.d_model,
        stride=bundle.manifest.bridge.stride,
    )
