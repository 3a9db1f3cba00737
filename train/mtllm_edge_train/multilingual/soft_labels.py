"""Soft labels of English texts, from two teachers that err on different ones.

The encoder alone knows of some texts what a small fine-tuned LLM does not, and the other way round. A soft label is the
normalised geometric mean of the class probabilities of both (a logarithmic opinion pool); the stack's heads learn it by
KL divergence (Hinton et al. 2015, arXiv 1503.02531).

Most sentences of parallel corpora are of one class, news of no sentiment, say; a student would learn that foreign text
is of that class. So texts count by how rare their labels are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from mtllm_edge.errors import UsageError
from mtllm_edge_train.checkpoints.config import TaskConfig
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.encoder_only import EncoderOnly
from mtllm_edge_train.distillation.teacher import Memory, Teacher
from mtllm_edge_train.training.settings import LoopSettings

_HEAVIEST = 5.0
"""What the weight of a text may be at most: a text of a class that hardly occurs would drown its batch."""


def balanced_weights(soft_NC: Tensor, prior_C: Tensor) -> Tensor:
    """Weights (N,) of texts, the mean over the classes of how much likelier they are here than in general.

    They would be 1 on average over the texts that the prior is of, each class with the same share, were they not cut
    off at 5.

    Args:
        soft_NC: Logarithms of the texts' soft labels.
        prior_C: Logarithm of the mean soft label in general.
    """
    return (soft_NC - prior_C).exp().mean(1).clamp(max=_HEAVIEST)


def check_labelled(labelled: Mapping[str, LabeledTexts], tasks: Mapping[str, TaskConfig], teacher: Path) -> None:
    """Refuse training rows that are not those of the teacher's tasks.

    Raises:
        UsageError: The teacher lacks a task, or has other labels, or one does not read single texts.
    """
    for task, data in labelled.items():
        if task not in tasks:
            raise UsageError(f"{teacher} has no task {task!r}; its tasks: {', '.join(tasks) or 'none'}")
        if {tasks[task].kind, data.kind} != {"sequence"}:
            raise UsageError(f"task {task!r} does not read single texts, which soft labels are of; leave it out")
        if {*data.counts} != {*tasks[task].labels}:
            raise UsageError(
                f"task {task!r} has the labels {', '.join(tasks[task].labels)} in {teacher}, but "
                f"{', '.join(data.counts)} in the labelled rows; give the rows that the teacher learned from"
            )


class SoftLabels:
    """What the fine-tuned LLM and its student's first encoder say together of English texts."""

    def __init__(
        self,
        labelled: Mapping[str, LabeledTexts],
        tasks: Mapping[str, TaskConfig],
        heads: nn.ModuleDict,
        start: Path,
        settings: LoopSettings,
        sample: Sequence[str],
        vectors_ND: Tensor,
    ) -> None:
        """Fit a classifier of each task on the mean states of an encoder, and measure how frequent the classes are.

        Args:
            labelled: Task -> its English training rows; see `check_labelled`.
            tasks: Those of the LLM.
            heads: Those of the LLM, as they are to stay.
            start: The checkpoint whose encoder is read.
            settings: Device and type.
            sample: English texts as they are drawn in training.
            vectors_ND: What the fine-tuned LLM says of them.
        """
        mean_states = EncoderOnly.of_checkpoint(start, device=settings.device, dtype=settings.frozen_dtype)
        self._states = Teacher(mean_states, Memory(), device=settings.device)
        self._of_llm = {task: heads[task].to(settings.device) for task in labelled}
        self._of_encoder = {
            task: mean_states.classifier(data, tasks[task].labels).to(settings.device)
            for task, data in labelled.items()
        }
        soft = self(sample, vectors_ND)
        self._prior = {task: soft_NC.logsumexp(0) - log(len(sample)) for task, soft_NC in soft.items()}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], vectors_ND: Tensor) -> dict[str, Tensor]:
        """Task -> logarithms of the soft labels (N, C).

        Args:
            texts: English texts.
            vectors_ND: What the fine-tuned LLM says of them.
        """
        states_NE = self._states(texts)
        pooled = {
            task: log_softmax(self._of_llm[task](vectors_ND), 1) + log_softmax(self._of_encoder[task](states_NE), 1)
            for task in self._of_llm
        }
        return {task: log_softmax(logits_NC / 2, 1) for task, logits_NC in pooled.items()}

    def divergence(
        self, heads: nn.ModuleDict, student_ND: Tensor, texts: Sequence[str], vectors_ND: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """KL divergence of a student from the soft labels in nats, summed over the tasks, and that of each task.

        Of each task it is the mean of the texts' divergences times their `balanced_weights`.

        Args:
            heads: The student's.
            student_ND: What the student says of the texts in some language.
            texts: Their English sides.
            vectors_ND: What the fine-tuned LLM says of these.
        """
        each: dict[str, Tensor] = {}
        for task, soft_NC in self(texts, vectors_ND).items():
            said_NC = log_softmax(heads[task](student_ND), 1)
            divergences_N = kl_div(said_NC, soft_NC, reduction="none", log_target=True).sum(1)
            each[task] = (balanced_weights(soft_NC, self._prior[task]) * divergences_N).mean()
        return torch.stack([*each.values()]).sum(), {f"kl_{task}": value.item() for task, value in each.items()}
