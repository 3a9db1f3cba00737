"""How well a checkpoint classifies, in torch: the figure that an exported bundle must reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.inputs import Input, check_kind
from mtllm_edge.tasks.metrics import macro_f1
from mtllm_edge_train.checkpoints.config import StackConfig, TaskConfig, resolve_source
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.llm_tokenization import MAX_TOKENS
from mtllm_edge_train.models.stack import load_llm_tokenizer, pool_in_batches


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """How predictions compare with the labels, as fractions of 1."""

    texts: int
    accuracy: float
    macro_f1: float
    """Mean of the labels' F1; a label that is neither in the data nor predicted is left out."""


class Evaluator:
    """A loaded checkpoint, a stack or a fine-tuned LLM without encoder."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Load a checkpoint; `languages` are the codes of which `predict` needs one, empty where it takes none.

        Raises:
            ModelError: A part is missing or damaged.
        """
        self._folder = folder
        self._config = StackConfig.load(folder)
        if self._config.encoder is not None:
            stack = loading.load_stack(folder).to(device)
            self._heads: Any = stack.heads
            self.languages: tuple[str, ...] = stack.tokenizer.languages

            def pool(texts: list[Input], language: str | None) -> Tensor:
                return stack.embed(stack.tokenizer.encode(texts, language=language))
        else:
            llm = loading.load_llm(folder, self._config).to(device)
            tokenizer = load_llm_tokenizer(resolve_source(self._config.llm.source, folder))
            self._heads = loading.load_heads(folder, self._config, width=llm.width).to(device)
            self.languages = ()

            def pool(texts: list[Input], language: str | None) -> Tensor:
                if language is not None:
                    raise UsageError(f"{folder} has no encoder that takes a language; leave the language out")
                return llm.embed(tokenizer, texts, max_tokens=MAX_TOKENS)

        self._pool = pool

    def evaluate(self, task: str, data: LabeledTexts, *, language: str | None = None) -> Scores:
        """Classify labelled texts and compare.

        Args:
            task: One of the checkpoint's tasks.
            data: Texts and labels.
            language: The texts' language, for encoders that must be told.

        Raises:
            UsageError: The checkpoint has no such task.
            DataError: The data is of another kind than the task, or has a label that the task lacks.
        """
        config = self._task(task)
        check_kind(data.inputs, config.kind, f"task {task!r}")
        labels = config.labels
        strange = sorted(set(data.labels) - set(labels))
        if strange and config.kind != "multiple_choice":
            raise DataError(f"task {task!r} has no label {strange[0]!r}; its labels: {', '.join(labels)}")
        return score(data.labels, self.predict(task, data.inputs, language=language))

    def predict(self, task: str, texts: Sequence[Input], *, language: str | None = None) -> list[str]:
        """Labels of texts; of choices, the number of the best one, the first being ``"0"``.

        Args:
            task: One of the checkpoint's tasks.
            texts: The texts, or what else the task reads (see `mtllm_edge.inputs`).
            language: Their language, for encoders that must be told.

        Raises:
            UsageError: The checkpoint has no such task.
            DataError: A text is not what the task reads.
        """
        config = self._task(task)
        check_kind(texts, config.kind, f"task {task!r}")
        with torch.no_grad():
            vectors = pool_in_batches(texts, lambda batch: self._pool(batch, language))
            logits_VC = self._heads[task](torch.cat(vectors))
        # a row of labels, or a column of choices
        found = [int(logits.argmax()) for logits in logits_VC.split([len(rows_VD) for rows_VD in vectors])]
        return [config.labels[index] if config.labels else str(index) for index in found]

    def _task(self, task: str) -> TaskConfig:
        if task not in self._config.tasks:
            names = ", ".join(self._config.tasks) or "none"
            raise UsageError(f"{self._folder} has no task {task!r}; its tasks: {names}")
        return self._config.tasks[task]


def score(gold: Sequence[str], found: Sequence[str]) -> Scores:
    """Compare predictions with labels."""
    codes_2N = np.unique([gold, found], return_inverse=True)[1].reshape(2, len(gold))
    hits_N = codes_2N[0] == codes_2N[1]
    occurrences_C = np.bincount(codes_2N.ravel())
    hits_C = np.bincount(codes_2N[0][hits_N], minlength=len(occurrences_C))
    return Scores(texts=len(gold), accuracy=float(hits_N.mean()), macro_f1=float(macro_f1(hits_C, occurrences_C)))
