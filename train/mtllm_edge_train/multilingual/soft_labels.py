"""Soft labels of English texts from two teachers that make different errors: the fine-tuned LLM and the encoder alone.

A soft label is the normalized geometric mean of both teachers' class probabilities (a logarithmic opinion pool). The
heads of the stack are trained on it by KL divergence (Hinton et al. 2015, arXiv 1503.02531).

Most sentences of parallel corpora belong to one class: news, for example, has no sentiment. A student would learn that
foreign text belongs to that class, so texts have class-balanced weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from mtllm_edge.errors import UsageError
from mtllm_edge_train.checkpoints.config import TaskConfig, find_task
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.embedding_cache import EmbeddingCache
from mtllm_edge_train.distillation.encoder_only import EncoderOnly
from mtllm_edge_train.distillation.teacher import CachedTeacher
from mtllm_edge_train.training.settings import LoopSettings

_MAX_WEIGHT = 5.0
"""Upper limit of a text's weight, so that one text of a very rare class does not dominate its batch."""


def class_balanced_weights(soft_NC: Tensor, prior_C: Tensor) -> Tensor:
    """Class-balanced weights (N,) of texts: the mean over the classes of soft label / class frequency, at most 5.

    Without the limit, the mean weight over the texts of the class frequencies is 1, with an equal share for each class.

    Args:
        soft_NC: Log soft labels.
        prior_C: Log class frequencies: the mean soft label of a sample.
    """
    return (soft_NC - prior_C).exp().mean(1).clamp(max=_MAX_WEIGHT)


def check_tasks(labeled: Mapping[str, LabeledTexts], tasks: Mapping[str, TaskConfig], teacher: Path) -> None:
    """Compare labeled rows with the teacher's tasks.

    Raises:
        UsageError: The teacher has no such task or other labels, or the task is not about single texts.
    """
    for task, data in labeled.items():
        config = find_task(tasks, task, teacher)
        if {config.kind, data.kind} != {"sequence"}:
            raise UsageError(f"task {task!r} is not about single texts, which soft labels need; leave it out")
        if {*data.counts} != {*config.labels}:
            raise UsageError(
                f"task {task!r} has the labels {', '.join(config.labels)} in {teacher}, but "
                f"{', '.join(data.counts)} in the labeled rows; give the rows that the teacher was fine-tuned on"
            )


class SoftLabels:
    """Soft labels from a fine-tuned LLM and a classifier on the frozen encoder."""

    def __init__(
        self,
        labeled: Mapping[str, LabeledTexts],
        tasks: Mapping[str, TaskConfig],
        heads: nn.ModuleDict,
        start: Path,
        settings: LoopSettings,
        sample: Sequence[str],
        vectors_ND: Tensor,
    ) -> None:
        """Fit the encoder-only classifiers, and measure the class frequencies of the English `sample`."""
        encoder = EncoderOnly.from_checkpoint(start, device=settings.device, dtype=settings.frozen_dtype)
        self._encoder = CachedTeacher(encoder, EmbeddingCache(), device=settings.device)
        self._llm_heads = {task: heads[task].to(settings.device) for task in labeled}
        self._encoder_heads = {
            task: encoder.classifier(data, tasks[task].labels).to(settings.device) for task, data in labeled.items()
        }
        soft = self(sample, vectors_ND)
        self._priors = {task: soft_NC.logsumexp(0) - log(len(sample)) for task, soft_NC in soft.items()}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], vectors_ND: Tensor) -> dict[str, Tensor]:
        """Log soft labels (N, C) by task of English texts, with the LLM's vectors of them."""
        states_NE = self._encoder(texts)
        soft = {}
        for task, llm_head in self._llm_heads.items():
            llm_NC, encoder_NC = llm_head(vectors_ND), self._encoder_heads[task](states_NE)
            soft[task] = log_softmax((log_softmax(llm_NC, 1) + log_softmax(encoder_NC, 1)) / 2, 1)
        return soft

    def divergence(
        self, heads: nn.ModuleDict, student_ND: Tensor, texts: Sequence[str], vectors_ND: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """KL divergence of a student from the soft labels in nats, class-balanced: sum over the tasks, and each task's.

        The student's vectors are those of the texts in some language, `vectors_ND` those of the LLM for the English
        texts.
        """
        by_task: dict[str, Tensor] = {}
        for task, soft_NC in self(texts, vectors_ND).items():
            student_NC = log_softmax(heads[task](student_ND), 1)
            divergence_N = kl_div(student_NC, soft_NC, reduction="none", log_target=True).sum(1)
            by_task[task] = (class_balanced_weights(soft_NC, self._priors[task]) * divergence_N).mean()
        return torch.stack([*by_task.values()]).sum(), {f"kl_{task}": value.item() for task, value in by_task.items()}
