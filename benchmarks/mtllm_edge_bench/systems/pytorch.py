"""The same stack in PyTorch, as a contender."""

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
"""Contender -> type of its weights and sums."""


class RandomStackConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`random.json`: a stack that is made of random weights when it is loaded."""

    encoder: dict[str, Any]
    """Keys of transformers' `M2M100Config`."""
    llm: dict[str, Any]
    """Keys of transformers' `LlamaConfig`."""


class TorchStack:
    """The stack that a bundle was exported from, or one of its shape, with the bundle's heads."""

    bare = False

    def __init__(self, job: Job) -> None:
        """Load or make the stack."""
        assert job.checkpoint is not None
        torch.set_num_threads(job.threads)
        self._job, self.meter = job, Profiler()
        bundle = Bundle.open(job.bundle)
        self._tokenizer = load_tokenizer(bundle)
        self._max_tokens = max(job.batch_tokens["stack"], bundle.manifest.encoder.max_tokens)
        self._head = Head.load(bundle.path, bundle.manifest.tasks[job.task])
        folder = Path(job.checkpoint)
        stack = load_stack(folder) if (folder / CONFIG_NAME).is_file() else _random_stack(folder, bundle)
        self._stack = stack.to(DTYPES[job.system]).eval()

    def answer(self, places: Sequence[int]) -> list[str]:
        """Labels; see `LoadedSystem`."""
        stack, stage, tokens = self._stack, self.meter.stage, self.meter.tokens
        with stage("tokenise"):
            encoded = self._tokenizer.encode([self._job.texts[place] for place in places], language=self._job.language)
        labels = [""] * len(encoded)
        for batch in plan_batches([len(text.ids) for text in encoded], max_tokens=self._max_tokens):
            with torch.inference_mode():
                with stage("encode"):
                    ids_NL, mask_NL = pad_right([encoded[place] for place in batch])
                    hidden_NLD = stack.encode(ids_NL, mask_NL)
                with stage("bridge"):
                    inputs_NGD, mask_NG = stack.bridge(hidden_NLD, mask_NL)
                with stage("llm"):
                    pooled_NE = stack.pool(inputs_NGD, mask_NG).float().numpy()
            tokens["encoder"] += int(mask_NL.sum())
            tokens["llm"] += int(mask_NG.sum())
            for place, index in zip(batch, self._head.probabilities(pooled_NE).argmax(axis=1), strict=True):
                labels[place] = self._head.labels[index]
        return labels


def _random_stack(folder: Path, bundle: Bundle) -> Stack:
    made = msgspec.json.decode((folder / RANDOM_STACK_NAME).read_bytes(), type=RandomStackConfig)
    encoder = transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**made.encoder)).get_encoder()
    body = LlmBody(transformers.LlamaModel(transformers.LlamaConfig(**made.llm)), bidirectional=False, lora=None)
    return Stack(
        encoder,
        load_tokenizer(bundle),
        body,
        d_encoder=bundle.manifest.encoder.d_model,
        stride=bundle.manifest.bridge.stride,
    )
