"""Texts to labels with probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle import Bundle
from mtllm_edge.embedder import Embedder
from mtllm_edge.framing import Encoded
from mtllm_edge.heads import Head
from mtllm_edge.kinds import Input, Kind, check_kind
from mtllm_edge.manifest import LlmBackend


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one text, pair, or text with choices."""

    label: str
    """The most probable label; of choices, its number, the first of them being ``"0"``."""
    probabilities: dict[str, float]
    """Probability of every label, in the order of the head, or of every choice by its number; they sum to 1."""
    tokens: int
    """Tokens that the encoder read, the special ones included."""
    truncated: bool
    """Whether the text was longer than the encoder takes and lost its end; of several texts, the longest did."""

    @property
    def confidence(self) -> float:
        """Probability of `label`."""
        return self.probabilities[self.label]


class Classifier:
    """A bundle with its task heads; one object may serve several threads."""

    def __init__(self, embedder: Embedder, heads: Mapping[str, Head], task: str) -> None:
        """Join loaded parts; use `Classifier.load`."""
        self._embedder, self._heads, self._task = embedder, dict(heads), task

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        task: str | None = None,
        threads: int | None = None,
        llm_backend: LlmBackend | None = None,
    ) -> Classifier:
        """Load a bundle.

        Args:
            bundle: The bundle or its folder.
            task: The task that `classify` performs unless told otherwise; None takes the bundle's only one.
            threads: CPU threads of the engines; None takes the cores open to this process, at most 8.
            llm_backend: Form of the LLM, ``gguf`` or ``onnx``; None takes the only one, or the better one here.

        Raises:
            UsageError: `bundle` is no folder, or lacks the form; it has no such task, or several and none is named.
            ModelError: The bundle is incomplete or damaged.
            EngineError: An engine is missing or refuses.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        heads = {name: Head.load(bundle.path, part) for name, part in bundle.manifest.tasks.items()}
        task = bundle.task_name(task)
        return cls(Embedder.load(bundle, threads=threads, llm_backend=llm_backend), heads, task)

    @property
    def task(self) -> str:
        """The task that `classify` performs unless told otherwise."""
        return self._task

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of `task`, in the order of its head; none for multiple choice."""
        return self._heads[self._task].labels

    @property
    def kind(self) -> Kind:
        """What `task` reads: ``sequence`` a text, ``pair`` two of them, ``multiple_choice`` a text with choices."""
        return self._heads[self._task].kind

    def classify(
        self,
        texts: Sequence[Input],
        *,
        task: str | None = None,
        language: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: The texts, in any languages that the encoder knows: strings, or what else the task reads, tuples
                ``(text, text_pair)`` or ``(text, [choice, choice, ...])``.
            task: Another task of the bundle than the one chosen in `load`.
            language: Code of the language of all texts, for encoders that must be told.
            progress: Called after every batch with the number of texts in it.

        Returns:
            A prediction for every text, in their order; a cut text says so in `Prediction.truncated`.

        Raises:
            DataError: A text is empty or not a string, or not of the task's kind.
            UsageError: The task is unknown, or the language missing, unknown, or not wanted.
            EngineError: An engine failed.
        """
        task = self._embedder.bundle.task_name(task or self._task)
        head = self._heads[task]
        encoded = self._embedder.encode(texts, language=language)
        check_kind(texts, head.kind, f"task {task!r}")
        pooled_VE = self._embedder.pool(encoded, progress=progress)
        if head.kind != "multiple_choice":
            rows = head.probabilities(pooled_VE)
            return [_prediction(text, head.labels, row_C) for text, row_C in zip(encoded, rows, strict=True)]
        choices = np.split(pooled_VE, np.cumsum([text.vectors for text in encoded])[:-1])
        return [
            _prediction(text, [*map(str, range(text.vectors))], head.choice_probabilities(pooled_CE))
            for text, pooled_CE in zip(encoded, choices, strict=False)  # of no texts, numpy makes one piece
        ]

    def close(self) -> None:
        """Give the engines' memory back; harmless when repeated."""
        self._embedder.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _prediction(text: Encoded, labels: Sequence[str], probabilities_C: NDArray[np.float64]) -> Prediction:
    return Prediction(
        label=labels[int(probabilities_C.argmax())],
        probabilities=dict(zip(labels, probabilities_C.tolist(), strict=True)),
        tokens=len(text.ids),
        truncated=text.truncated,
    )
