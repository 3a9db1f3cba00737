"""Stage 2, task distillation: the stack learns to give the vectors of the fine-tuned LLM for the same English texts.

Teacher: the fine-tuned LLM on its own tokens; its vectors are computed once. Student: the adapted stack. Trained: LoRA.
The bridge stays as it is, and the heads are the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input
from mtllm_edge_train.checkpoints import tensors
from mtllm_edge_train.data.batches import BatchOrder
from mtllm_edge_train.distillation import student
from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.distillation.teacher import load_teacher
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.stack import encode_english
from mtllm_edge_train.training.stage import Stage, TrainingPlan, trainable


@dataclass(kw_only=True, eq=False)
class Distillation(Stage):
    """Distillation of a fine-tuned LLM into an adapted stack."""

    kind = "distill"
    texts: Sequence[Input]
    """Training inputs of the tasks, and any other English text: labels are not used. Of a text with choices, the
    vectors of the choices are matched."""
    adapted: Path
    """Checkpoint of general adaptation."""
    teacher: Path
    """Checkpoint of fine-tuning, on the same LLM with the same layers."""
    epochs: int

    def check(self) -> Sequence[object]:
        """Compare the checkpoints.

        Raises:
            UsageError: They do not belong together, or there are fewer than two texts.
        """
        self.config = student.student_config(self.adapted, self.teacher, name=self.name, sources=self.sources)
        if len(self.texts) < 2:
            raise UsageError("task distillation needs at least two texts; give the training texts of the tasks")
        return self.epochs, tensors.weights_digest(self.adapted), tensors.weights_digest(self.teacher), list(self.texts)

    def build(self, checkpoint: Path | None, log: Callable[[str], None]) -> TrainingPlan:
        """Compute the teacher's vectors, then load the student."""
        log(f"distill: the teacher reads {len(self.texts)} texts")
        self._targets = self._teacher_vectors()
        self._scale = Standardizer.fit(torch.cat(self._targets))
        self._stack, self._encoder = student.build_student(self.config, self.adapted, self.settings)
        student.restore_weights(self._stack, checkpoint or self.adapted)
        self._stack.bridge.requires_grad_(False)
        self._stack.heads = loading.load_heads(self.teacher, self.config, width=self._stack.llm.width)
        self._encoded = encode_english(self._stack.tokenizer, self.texts)
        lengths = [len(text.ids) for text in self._encoded]
        batches = BatchOrder(lengths, self.settings.batch_size, seed=self.settings.seed)
        groups = [{"params": trainable(self._stack.llm)}]
        return TrainingPlan(groups, batches, self.epochs * batches.batches_per_epoch)

    def _teacher_vectors(self) -> list[Tensor]:
        """Vectors (V, D) of each text. The teacher is freed afterwards: it may not fit in memory beside the student."""
        encode = load_teacher(self.teacher, max_tokens=self.config.encoder.max_tokens, settings=self.settings)
        unique = {repr(text): text for text in self.texts}
        vectors = dict(zip(unique, encode([*unique.values()]), strict=True))
        return [vectors[repr(text)] for text in self.texts]

    def loss(self, batch: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """Distillation loss between the stack and the teacher."""
        student_VD = student.run_student(self._stack, [self._encoded[i] for i in batch], self.settings)
        return distillation_loss(student_VD, torch.cat([self._targets[i] for i in batch]), self._scale)

    def loss_terms(self, batch: Sequence[int]) -> int:
        """Number of vectors."""
        return sum(len(self._targets[i]) for i in batch)

    def save(self, folder: Path) -> None:
        """Write the student with the teacher's heads."""
        student.save_student(folder, self.config, self._stack, self._encoder, self.adapted)
