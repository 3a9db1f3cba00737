"""Task fine-tuning: the English LLM, without the encoder, learns the tasks. The result is the teacher of distillation.

Trained: LoRA and one linear head per task, on the LLM's own tokens; several tasks may share the LoRA. A head starts as
the logistic regression on the vectors of the frozen LLM, so that the first steps do not distort its features (Kumar et
al. 2022, arXiv 2202.10054); with a thousand labels that decides between gain and loss. The paper trains for 3 epochs on
NLI, 20 on NusaX, 5 on Belebele.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.inputs import parts_of, vector_count
from mtllm_edge_train.checkpoints import tensors
from mtllm_edge_train.checkpoints.config import (
    CHECKPOINT_VERSION,
    LlmConfig,
    LoraConfig,
    StackConfig,
    TaskConfig,
    resolve_source,
)
from mtllm_edge_train.data.batches import BatchOrder
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.linear_probe import logistic_regression
from mtllm_edge_train.distillation.losses import Standardizer
from mtllm_edge_train.distillation.student import build_llm
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.llm_tokenization import MAX_TOKENS
from mtllm_edge_train.models.stack import embed_texts, load_llm_tokenizer
from mtllm_edge_train.training.stage import Stage, TrainingPlan, trainable

_PENALTY = 50.0
"""L2 penalty of the logistic regression that initializes a head."""


@dataclass(kw_only=True, eq=False)
class FineTuning(Stage):
    """Fine-tuning of an LLM on English labels; the checkpoint has no encoder."""

    kind = "finetune"
    tasks: Mapping[str, LabeledTexts]
    """Task name -> training set."""
    llm: LlmConfig
    """The LLM, with as many layers as in the stack that will learn from it."""
    lora: LoraConfig
    epochs: int
    """Passes over the texts of all tasks together."""

    def check(self) -> Sequence[object]:
        """Validate tasks and labels.

        Raises:
            UsageError: No task, or an invalid task name.
            DataError: A task has fewer than two labels, or the same correct choice in all rows.
        """
        if not self.tasks:
            raise UsageError("no task to fine-tune on; give at least one labeled file")
        for task, data in self.tasks.items():
            _check_task(task, data)
        self.config = StackConfig(
            checkpoint_version=CHECKPOINT_VERSION,
            name=self.name,
            encoder=None,
            llm=self.llm,
            lora=self.lora,
            tasks={
                task: TaskConfig(kind=data.kind, labels=() if data.kind == "multiple_choice" else tuple(data.counts))
                for task, data in self.tasks.items()
            },
            sources=tuple(self.sources),
        )
        self._examples = [
            (task, text, label)
            for task, data in self.tasks.items()
            for text, label in zip(data.inputs, self._label_indices(task), strict=True)
        ]
        return self.epochs, self._examples

    def _label_indices(self, task: str) -> list[int]:
        labels = self.config.tasks[task].labels
        return [labels.index(label) if labels else int(label) for label in self.tasks[task].labels]

    def build(self, checkpoint: Path | None, log: Callable[[str], None]) -> TrainingPlan:
        """Load the LLM and initialize the heads."""
        for task, data in self.tasks.items():
            log(f"{task} {data.summary}")
        self._llm = build_llm(self.config, None, self.settings)
        self._tokenizer = load_llm_tokenizer(resolve_source(self.llm.source))
        if checkpoint is not None:
            self._llm.load_lora_state(tensors.read_lora(checkpoint))
            self._heads = loading.load_heads(checkpoint, self.config, width=self._llm.width)
        else:
            log("finetune: reading the texts with the frozen LLM")
            self._heads = nn.ModuleDict({task: self._linear_probe(task) for task in self.tasks})
        self._heads.to(self.settings.device)
        lengths = [sum(map(len, parts_of(text))) for _, text, _ in self._examples]
        batches = BatchOrder(lengths, self.settings.batch_size, seed=self.settings.seed)
        parameters = [*trainable(self._llm), *self._heads.parameters()]
        return TrainingPlan([{"params": parameters}], batches, self.epochs * batches.batches_per_epoch)

    def _linear_probe(self, task: str) -> nn.Linear:
        inputs, rows = self.tasks[task].inputs, self.config.tasks[task].rows
        vectors = embed_texts(self._llm, self._tokenizer, inputs, max_tokens=MAX_TOKENS, settings=self.settings)
        vectors_VD = torch.cat(vectors).cpu()
        target_N = torch.tensor(self._label_indices(task))
        return logistic_regression(vectors_VD, target_N, rows, scale=Standardizer.fit(vectors_VD), penalty=_PENALTY)

    def loss(self, batch: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the labels, and the accuracy."""
        examples = [self._examples[i] for i in batch]
        texts = [text for _, text, _ in examples]
        self._llm.train()
        with self.settings.autocast():
            pooled_VD = self._llm.embed(self._tokenizer, texts, max_tokens=MAX_TOKENS)
        vectors = torch.split(pooled_VD, [vector_count(text) for text in texts])
        total, correct = pooled_VD.new_zeros(()), 0
        for task in self.tasks:
            rows = [row for row, example in enumerate(examples) if example[0] == task]
            if rows:
                # A head gives a row of logits for the labels, but a column for the choices.
                logits_NC = self._heads[task](torch.cat([vectors[row] for row in rows])).reshape(len(rows), -1)
                target_N = torch.tensor([examples[row][2] for row in rows], device=self.settings.device)
                total = total + nn.functional.cross_entropy(logits_NC, target_N, reduction="sum")
                correct += int((logits_NC.argmax(1) == target_N).sum())
        return total / len(examples), {"accuracy": correct / len(examples)}

    def save(self, folder: Path) -> None:
        """Write LoRA and heads."""
        loading.save_parts(folder, self.config, None, self._llm, self._heads)


def _check_task(task: str, data: LabeledTexts) -> None:
    if not task.isidentifier() or hasattr(nn.ModuleDict(), task):
        raise UsageError(f"a task cannot be called {task!r}; choose another word of letters, digits and _")
    if len(data.counts) < 2:
        raise DataError(f"task {task!r} has {len(data.texts)} texts with the labels {[*data.counts]}; give two labels")
