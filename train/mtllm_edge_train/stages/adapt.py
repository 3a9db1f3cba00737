"""Stage 1, general adaptation: the stack learns from English text to give the vectors of the plain LLM.

Teacher: the LLM on its own tokens, LoRA off. Student: the stack, LoRA on. Trained: bridge and LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtllm_edge.bundle.manifest import MAX_STRIDE, BridgeSpec
from mtllm_edge.errors import UsageError
from mtllm_edge_train.checkpoints.config import (
    CHECKPOINT_VERSION,
    EncoderConfig,
    LlmConfig,
    LoraConfig,
    StackConfig,
    resolve_source,
)
from mtllm_edge_train.data.streams import WINDOW, StreamedBatches, survey
from mtllm_edge_train.distillation.bridge_init import initialize_bridge
from mtllm_edge_train.distillation.embedding_cache import EmbeddingCache
from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.distillation.student import build_student, restore_weights, run_student
from mtllm_edge_train.distillation.teacher import CachedTeacher, encode_without_lora, plain_llm_key
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.stack import encode_english, load_llm_tokenizer
from mtllm_edge_train.training.stage import Stage, TrainingPlan, trainable

_BRIDGE_SAMPLE = 4096
"""Texts for the regression that initializes the bridge."""
_SCALE_SAMPLE = 1024
"""Texts for the mean and standard deviation of the teacher's vectors."""


@dataclass(kw_only=True, eq=False)
class Adaptation(Stage):
    """General adaptation of a new stack. `settings.learning_rate` is that of the LoRA."""

    kind = "adapt"
    texts: Iterable[str]
    """English texts: a list, or a `TextStream`, which is read as needed. All texts of the run are read once before it,
    to find errors early (not if the corpus is remote). A corpus that ends before the run is shuffled and read again."""
    encoder: EncoderConfig
    llm: LlmConfig
    lora: LoraConfig
    steps: int
    bridge_learning_rate: float
    stride: int = 1
    """Neighboring encoder states per LLM input, 1 to 4."""
    teacher_cache: Path | None = None
    """Folder with the teacher's vectors, which several runs may share; None for no cache."""

    def check(self) -> Sequence[object]:
        """Read the texts once.

        Raises:
            UsageError: Fewer than two texts, or an invalid stride.
            DataError: A text cannot be read.
        """
        if not 1 <= self.stride <= MAX_STRIDE:
            raise UsageError(f"the bridge cannot have stride {self.stride}; choose 1 to {MAX_STRIDE}")
        self.config = StackConfig(
            checkpoint_version=CHECKPOINT_VERSION,
            name=self.name,
            encoder=self.encoder,
            bridge=BridgeSpec.of_stride(self.stride),
            llm=self.llm,
            lora=self.lora,
            tasks={},
            sources=tuple(self.sources),
        )
        limit = self.steps * self.settings.batch_size + WINDOW
        self._survey = survey(self.texts, limit=limit, sample=_BRIDGE_SAMPLE, seed=self.settings.seed)
        if self._survey.total < 2:
            raise UsageError("general adaptation needs at least two texts; a hundred thousand are better")
        return self.steps, self.bridge_learning_rate, self._survey.digest

    def build(self, checkpoint: Path | None, log: Callable[[str], None]) -> TrainingPlan:
        """Load the stack, initialize its bridge and measure the teacher's vectors."""
        self._stack, _ = build_student(self.config, None, self.settings)
        tokenizer = load_llm_tokenizer(resolve_source(self.llm.source))
        if checkpoint is not None:
            restore_weights(self._stack, checkpoint)
        else:
            initialize_bridge(self._stack, self._survey.sample, tokenizer)
        self._teacher = self._cached_teacher(tokenizer)
        sample = self._survey.sample[:: -(-len(self._survey.sample) // _SCALE_SAMPLE)]
        vectors_ND = torch.cat([self._teacher(sample[i : i + 32]) for i in range(0, len(sample), 32)])
        self._scale = Standardizer.fit(vectors_ND)
        groups: list[dict[str, Any]] = [
            {"params": list(self._stack.bridge.parameters()), "lr": self.bridge_learning_rate},
            {"params": trainable(self._stack.llm)},
        ]
        batches = StreamedBatches(self.texts, self.settings.batch_size, seed=self.settings.seed)
        return TrainingPlan(groups, batches, self.steps)

    def _cached_teacher(self, tokenizer: Any) -> CachedTeacher:
        options: Any = {"max_tokens": self.encoder.max_tokens, "settings": self.settings}
        cache = None
        if self.teacher_cache is not None:
            cache = EmbeddingCache(self.teacher_cache, plain_llm_key(self.llm, **options))
        encode = partial(encode_without_lora, self._stack.llm, tokenizer, **options)
        return CachedTeacher(encode, cache, device=self.settings.device)

    def loss(self, batch: Sequence[str]) -> tuple[Tensor, dict[str, float]]:
        """Distillation loss between the stack and the plain LLM."""
        encoded = encode_english(self._stack.tokenizer, batch)
        return distillation_loss(run_student(self._stack, encoded, self.settings), self._teacher(batch), self._scale)

    def save(self, folder: Path) -> None:
        """Write the stack, without heads."""
        loading.save_parts(folder, self.config, self._stack, self._stack.llm, self._stack.heads)
