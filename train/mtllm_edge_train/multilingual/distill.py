"""Multilingual distillation, an addition to the paper: the stack reads a translation, the teacher the English original.

The paper's stack sees English only and relies on the encoder to have the same states in every language. Those of a
small encoder differ, so here bridge and LoRA are trained on parallel sentences: the student reads a sentence in any
language, the teacher its English translation (Reimers and Gurevych 2020, arXiv 2004.09813, with an LLM's vectors as
targets). If that is not enough, the encoder is trained, too, and the heads are trained on soft labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from mtllm_edge.bundle.manifest import BridgeSpec
from mtllm_edge.errors import UsageError
from mtllm_edge.tokenization.encoding import Encoding
from mtllm_edge_train.checkpoints import tensors
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation import student
from mtllm_edge_train.distillation.embedding_cache import EmbeddingCache
from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.distillation.teacher import CachedTeacher, load_teacher
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.llm_tokenization import MAX_TOKENS
from mtllm_edge_train.models.stack import Stack
from mtllm_edge_train.multilingual.pairs import PairSampler, SentencePair, digest
from mtllm_edge_train.multilingual.soft_labels import SoftLabels, check_tasks
from mtllm_edge_train.training.stage import Stage, TrainingPlan, trainable

_SAMPLE = 1024
"""English sentences for the statistics of the teacher's vectors and soft labels: the first of the run, so that a
resumed run uses the same."""
_VECTOR_WEIGHT = 0.3
"""Weight of the vectors' loss beside the divergence from the soft labels."""


class _Example(NamedTuple):
    text: Encoding
    english: str

    def lengths(self) -> tuple[int, ...]:
        """Number of tokens."""
        return (len(self.text.ids),)


@dataclass(kw_only=True, eq=False)
class MultilingualDistillation(Stage):
    """Distillation of a fine-tuned LLM into a stack by parallel sentences.

    `settings.learning_rate` is that of LoRA and heads.
    """

    kind = "multilingual"
    pairs: Sequence[SentencePair]
    """Sentences with their English translations; English sentences are paired with themselves."""
    start: Path
    """Checkpoint of a stack to start from, with an encoder that needs no language code."""
    teacher: Path
    """Checkpoint of fine-tuning, on the same LLM with the same layers."""
    max_tokens: int
    """Pairs with more encoder tokens in the sentence are skipped."""
    steps: int
    bridge_learning_rate: float
    encoder_learning_rate: float | None = None
    """None to keep the encoder frozen. A trained encoder is saved in the checkpoint. Its word embeddings stay frozen:
    the reference model ships them in 4 bits, which is lossless only for the original table."""
    labeled: Mapping[str, LabeledTexts] = field(default_factory=dict)
    """Task -> English rows that the teacher was fine-tuned on, of tasks on single texts. The heads of these tasks start
    as the teacher's and are trained on `SoftLabels`, with the encoder of `start` as the second teacher. The heads of
    other tasks stay the teacher's."""
    stride: int = 1
    """Stride of the bridge. If `start` has another stride (1), its bridge is applied to the mean of the states."""

    def check(self) -> Sequence[object]:
        """Compare the checkpoints and the labeled rows.

        Raises:
            UsageError: No pairs, or checkpoints or labeled rows that do not belong together.
        """
        if not self.pairs:
            raise UsageError("multilingual distillation needs sentence pairs; give at least one file of them")
        config = student.student_config(self.start, self.teacher, name=self.name, sources=self.sources)
        stride = config.bridge.stride
        if stride not in (1, self.stride):
            raise UsageError(
                f"{self.start} has a bridge of stride {stride}, which stride {self.stride} cannot start from"
            )
        self.config = msgspec.structs.replace(config, bridge=BridgeSpec.of_stride(self.stride))
        check_tasks(self.labeled, config.tasks, self.teacher)
        return (
            *(self.bridge_learning_rate, self.encoder_learning_rate, self.steps, self.max_tokens, digest(self.pairs)),
            *([*self.labeled.items()], tensors.weights_digest(self.start), tensors.weights_digest(self.teacher)),
        )

    def build(self, checkpoint: Path | None, log: Callable[[str], None]) -> TrainingPlan:
        """Load teacher and student, and compute the statistics of the teacher's vectors and labels."""
        encode = load_teacher(self.teacher, max_tokens=MAX_TOKENS, settings=self.settings)
        device = self.settings.device
        self._teacher = CachedTeacher(lambda texts: torch.cat(encode(texts)), EmbeddingCache(), device=device)
        self._load_student(checkpoint)
        batches = PairSampler(
            self.pairs,
            self._tokenize,
            max_tokens=self.max_tokens,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
        )
        steps = -(-_SAMPLE // self.settings.batch_size)
        sample = [example.english for step in range(steps) for example in batches[step]]
        sample_ND = self._teacher(sample)
        self._scale = Standardizer.fit(sample_ND)
        self._soft_labels = None
        if self.labeled:
            log(f"multilingual: fitting the encoder-only classifiers of {', '.join(self.labeled)}")
            heads = loading.load_heads(self.teacher, self.config, width=self._stack.llm.width)
            self._soft_labels = SoftLabels(
                self.labeled, self.config.tasks, heads, self.start, self.settings, sample, sample_ND
            )
        return TrainingPlan(self._parameter_groups(), batches, self.steps)

    def _load_student(self, checkpoint: Path | None) -> None:
        train_encoder = self.encoder_learning_rate is not None
        stack, self._encoder = student.build_student(
            self.config, self.start, self.settings, train_encoder=train_encoder
        )
        if stack.tokenizer.needs_language:
            raise UsageError(f"the encoder of {self.start} requires a language code, which sentence pairs do not give")
        if self.settings.device == "cpu":  # for short sentences the backward pass of the fused kernel is slower
            stack.llm.model.base_model.model.set_attn_implementation("eager")
            if train_encoder:
                module: Any = self._encoder.module
                module.set_attn_implementation("eager")
        if checkpoint is not None:
            student.restore_weights(stack, checkpoint)
        else:
            initialize_student(stack, self.start)
        heads = loading.load_heads(checkpoint or self.teacher, self.config, width=stack.llm.width)
        stack.heads = heads.to(self.settings.device)
        self._stack = stack

    def _tokenize(self, pairs: Sequence[SentencePair]) -> list[_Example]:
        texts = self._stack.tokenizer.encode([pair.text for pair in pairs])
        return [_Example(text, pair.english) for text, pair in zip(texts, pairs, strict=True)]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        stack = self._stack
        groups: list[dict[str, Any]] = [
            {"params": list(stack.bridge.parameters()), "lr": self.bridge_learning_rate},
            {"params": trainable(stack.llm)},
        ]
        if self.labeled:
            groups.append({"params": [each for task in self.labeled for each in stack.heads[task].parameters()]})
        if self.encoder_learning_rate is not None:
            groups.append({"params": trainable(stack.encoder), "lr": self.encoder_learning_rate})
        return groups

    def loss(self, batch: Sequence[_Example]) -> tuple[Tensor, dict[str, float]]:
        """Distillation loss of the vectors and, for labeled tasks, divergence from the soft labels."""
        student_ND = student.run_student(self._stack, [example.text for example in batch], self.settings)
        english = [example.english for example in batch]
        teacher_ND = self._teacher(english)
        error, metrics = distillation_loss(student_ND, teacher_ND, self._scale)
        if self._soft_labels is None:
            return error, metrics
        divergence, by_task = self._soft_labels.divergence(self._stack.heads, student_ND, english, teacher_ND)
        return _VECTOR_WEIGHT * error + divergence, {**metrics, **by_task}

    def save(self, folder: Path) -> None:
        """Write the student."""
        student.save_student(folder, self.config, self._stack, self._encoder, self.start)


def initialize_student(stack: Stack, start: Path) -> None:
    """Load LoRA and bridge of a checkpoint; a bridge of stride 1 is applied to the mean over the stack's stride."""
    stack.llm.load_lora_state(tensors.read_lora(start))
    weight, bias = tensors.read_bridge(start)
    copies = stack.bridge.weight.shape[1] // weight.shape[1]
    stack.bridge.weight.data.copy_(torch.from_numpy(weight).repeat(1, copies) / copies)
    stack.bridge.bias.data.copy_(torch.from_numpy(bias))
