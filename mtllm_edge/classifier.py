"""Texts to labels with probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mtllm_edge.bundle import Bundle
from mtllm_edge.embedder import Embedder
from mtllm_edge.errors import UsageError
from mtllm_edge.heads import Head


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one text."""

    label: str
    """The most probable label."""
    probabilities: dict[str, float]
    """Probability of every label, in the order of the head; they sum to 1."""
    tokens: int
    """Tokens that the encoder read, the special ones included."""
    truncated: bool
    """Whether the text was longer than the encoder takes and lost its end."""

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
    def load(cls, bundle: str | Path | Bundle, *, task: str | None = None, threads: int | None = None) -> Classifier:
        """Load a bundle.

        Args:
            bundle: The bundle or its folder.
            task: The task that `classify` performs unless told otherwise; None takes the bundle's only one.
            threads: CPU threads of the engines; None takes the cores open to this process, at most 8.

        Raises:
            UsageError: `bundle` is no folder, the bundle has no such task, or several and none is named.
            ModelError: The bundle is incomplete or damaged.
            EngineError: An engine is missing or refuses.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        heads = {name: Head.load(bundle.path, part) for name, part in bundle.manifest.tasks.items()}
        task = _chosen(task, list(heads), bundle.path)
        return cls(Embedder.load(bundle, threads=threads), heads, task)

    @property
    def task(self) -> str:
        """The task that `classify` performs unless told otherwise."""
        return self._task

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of `task`, in the order of its head."""
        return self._heads[self._task].labels

    def classify(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        language: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: The texts, in any languages that the encoder knows.
            task: Another task of the bundle than the one chosen in `load`.
            language: Code of the language of all texts, for encoders that must be told.
            progress: Called after every batch with the number of texts in it.

        Returns:
            A prediction for every text, in their order; a cut text says so in `Prediction.truncated`.

        Raises:
            DataError: A text is empty or not a string.
            UsageError: The task is unknown, or the language missing, unknown, or not wanted.
            EngineError: An engine failed.
        """
        head = self._heads[_chosen(task or self._task, list(self._heads), self._embedder.bundle.path)]
        encoded = self._embedder.encode(texts, language=language)
        probabilities_NC = head.probabilities(self._embedder.pool(encoded, progress=progress))
        return [
            Prediction(
                label=head.labels[int(row_C.argmax())],
                probabilities=dict(zip(head.labels, row_C.tolist(), strict=True)),
                tokens=len(text.ids),
                truncated=text.truncated,
            )
            for text, row_C in zip(encoded, probabilities_NC, strict=True)
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


def _chosen(task: str | None, known: Sequence[str], path: Path) -> str:
    if not known:
        raise UsageError(f"{path} has no task; use `mtllm-edge embed`, or export it with a head")
    if task is None and len(known) == 1:
        return known[0]
    if task is None:
        raise UsageError(f"{path} has the tasks {', '.join(known)}; name one of them as the task")
    if task not in known:
        raise UsageError(f"{path} has no task {task!r}; it has {', '.join(known)}")
    return task
