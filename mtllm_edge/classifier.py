"""Classify texts with the tasks of a bundle, or with one fitted to labeled texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.probing.gpu import GpuLayers
from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.embedder import Embedder, warn_truncated
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require
from mtllm_edge.inputs import Input, Kind, check_kind
from mtllm_edge.tasks.calibration import resolve_abstention
from mtllm_edge.tasks.cross_validation import Groups
from mtllm_edge.tasks.fitting import FitReport, fit_head, prepare_examples
from mtllm_edge.tasks.head import Head, load_heads
from mtllm_edge.tasks.prediction import Prediction, predict
from mtllm_edge.tasks.store import add_task, task_source
from mtllm_edge.tokenization.windows import LongTexts, check_long_texts

_NOT_FITTED = "no task was fitted yet; call fit(texts, labels) first"


class Classifier:
    """A bundle with its task heads; one object may serve several threads.

    `fit` adds a task, in scikit-learn's conventions::

        classifier = Classifier(Embedder.load("bundle")).fit(texts, labels)
        classifier.predict(["Bitte sofort zurückrufen!"])
        classifier.save_task("urgency")
    """

    def __init__(self, embedder: Embedder, heads: Mapping[str, Head] | None = None, task: str | None = None) -> None:
        """Create a classifier from loaded parts; `Classifier.load` loads a bundle.

        Args:
            embedder: The loaded bundle.
            heads: Heads of its tasks; None loads them.
            task: Default task of `classify`; None is the task of `fit`.
        """
        self._embedder, self._task = embedder, task
        self._heads: dict[str | None, Head] = dict((load_heads(embedder.bundle) if heads is None else heads).items())
        self._report: FitReport | None = None

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        task: str | None = None,
        threads: int | None = None,
        llm_backend: LlmBackend | None = None,
        gpu_layers: GpuLayers = 0,
    ) -> Classifier:
        """Load a bundle. `task` is the default task of `classify`; None takes the bundle's only one.

        Other arguments, warnings and errors are those of `Embedder.load`.

        Raises:
            UsageError: Also if the bundle has no such task, or several and `task` is None.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        heads = load_heads(bundle)
        task = bundle.task_name(task)
        embedder = Embedder.load(bundle, threads=threads, llm_backend=llm_backend, gpu_layers=gpu_layers)
        return cls(embedder, heads, task)

    @property
    def task(self) -> str | None:
        """Default task of `classify`; None for a fitted task that is not saved."""
        return self._task

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of `task`, in the order of its head; empty for multiple choice."""
        return self._head(None).labels

    @property
    def classes_(self) -> NDArray[np.str_]:
        """`labels` as an array, under scikit-learn's name."""
        return np.array(self.labels, dtype=np.str_)

    @property
    def kind(self) -> Kind:
        """Input kind of `task`: ``sequence`` for texts, ``pair``, or ``multiple_choice`` for texts with choices."""
        return self._head(None).kind

    @property
    def report_(self) -> FitReport:
        """Cross-validated metrics of the fitted task.

        Raises:
            UsageError: No task was fitted.
        """
        if self._report is None:
            raise UsageError(_NOT_FITTED)
        return self._report

    def classify(
        self,
        texts: Sequence[Input],
        *,
        task: str | None = None,
        language: str | Sequence[str | None] | None = None,
        long_texts: LongTexts = "cut",
        threshold: float | None = None,
        abstain: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: Texts in languages of the encoder; tuples ``(text, text_pair)`` or ``(text, [choice, choice, ...])``
                for tasks of these kinds.
            task: A task of the bundle; None takes the default task.
            language: As for `Embedder.embed`. It also selects the temperature of tasks with temperatures per language,
                and is the `Prediction.language`.
            long_texts: As for `Embedder.embed`; ``pool`` is for tasks of single texts only.
            threshold: Confidence, 0 to 1, below which the task abstains; None takes the task's, 0 never abstains.
            abstain: Label of an abstention; None takes the task's, or ``unsure``.
            progress: Called after every batch with its number of texts.

        Returns:
            A prediction for every text, in order; `Prediction.truncated` marks cut texts.

        Warns:
            LanguageWarning: Some texts are read as a substitute for their language.

        Raises:
            DataError: A text is empty or not a string, or not of the task's kind.
            UsageError: The task is unknown; the language is missing or unknown; this kind has no windows; or the
                threshold or abstention label is invalid.
            EngineError: An engine failed.
        """
        head = self._head(task)
        reader = f"task {task or self._task!r}"
        check_long_texts(long_texts, head.kind, reader)
        threshold, abstain = resolve_abstention(head, threshold, abstain)
        windows = self._embedder.windows(texts, language=language, long_texts=long_texts)
        check_kind(texts, head.kind, reader)
        text_progress = windows.text_progress(progress)
        pooled_VE = self._embedder.pool(windows.encodings, task=task or self._task, progress=text_progress)
        return predict(head, windows, pooled_VE, threshold, abstain)

    def fit(
        self,
        texts: Sequence[Input],
        labels: Sequence[str],
        *,
        language: str | None = None,
        groups: Groups | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Classifier:
        """Fit a task to labeled texts: a calibrated logistic regression on the bundle's vectors.

        The bundle does not change until `save_task`. Duplicates of a text with the same label count once.

        Args:
            texts: The texts, or pairs ``(text, text_pair)``.
            labels: Label of each; two different texts or more per label.
            language: Code or name of the language of all texts, or ``auto``; required by encoders with language tokens.
            groups: Group of each text, a word or a number, such as its document or author. In cross-validation, the
                texts of a group are predicted by a head fitted without the group. None puts every text into its own.
            progress: Called with the stage, ``texts`` or ``regressions``, its steps done and its total of steps.

        Returns:
            The classifier itself, with the fitted task as its default task.

        Warns:
            TruncationWarning: Some texts were cut.

        Raises:
            DataError: A text, label or group cannot be used, their numbers differ, or a label has too few texts.
            UsageError: scikit-learn is not installed, the task is one of multiple choice, or the language is wrong.
            EngineError: An engine failed.
        """
        require("fit", "sklearn")
        examples = prepare_examples(list(texts), list(labels), None if groups is None else list(groups))
        encoded = self._embedder.encode(examples.inputs, language=language)
        check_kind(examples.inputs, examples.kind, "a task that reads the first text")
        warn_truncated(encoded, self._embedder.bundle.manifest.encoder.max_tokens)
        report_progress = progress or (lambda *_: None)
        done = 0

        def count_texts(texts: int) -> None:
            nonlocal done
            done += texts
            report_progress("texts", done, len(encoded))

        pooled_NE = self._embedder.pool(encoded, progress=count_texts)
        head, self._report = fit_head(pooled_NE, examples, partial(report_progress, "regressions"))
        self._heads = {**self._heads, None: head}
        self._task = None
        return self

    def predict(
        self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None
    ) -> NDArray[np.str_]:
        """Most probable label of each text, (texts,), without abstentions; arguments as for `classify`."""
        predictions = self.classify(texts, language=language, threshold=0)
        return np.array([prediction.label for prediction in predictions], dtype=np.str_)

    def predict_proba(
        self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None
    ) -> NDArray[np.float64]:
        """Probability of every label, (texts, labels) in the order of `classes_`; arguments as for `classify`.

        Raises:
            UsageError: As for `classify`, or the task is one of multiple choice.
        """
        if self.kind == "multiple_choice":
            raise UsageError("multiple choice has no fixed classes; use classify, whose predictions have probabilities")
        predictions = self.classify(texts, language=language)
        rows = [[*prediction.probabilities.values()] for prediction in predictions]
        return np.array(rows, np.float64).reshape(len(rows), len(self.labels))

    def save_task(
        self, name: str, *, license: str | None = None, source: str = "labeled texts", force: bool = False
    ) -> None:
        """Write the fitted task into the bundle, whose folder changes in one step, and name it.

        Args:
            name: Name of the task.
            license: License of the task, an SPDX identifier; None claims none.
            source: Origin of the task for the manifest, which has one for tasks with a license.
            force: Replace a task with this name.

        Raises:
            UsageError: No task was fitted, the name is taken or invalid, or the license is blank.
            ModelError: The bundle is damaged.
        """
        head = self._heads.get(None)
        if head is None:
            raise UsageError(_NOT_FITTED)
        task = task_source(name, source, license)
        self._embedder.bundle = add_task(self._embedder.bundle, name, head, source=task, force=force)
        self._heads = {**self._heads, name: head}
        self._task = name

    def _head(self, task: str | None) -> Head:
        """Head of a task of the bundle; None is the selected or fitted task."""
        if task is not None and task not in self._heads:
            self._embedder.bundle.task_name(task)  # raises, unless another program added the task meanwhile
        try:
            return self._heads[self._task if task is None else task]
        except KeyError:
            raise UsageError("the classifier has no task yet; call fit(texts, labels), or name one") from None

    def close(self) -> None:
        """Free the engines' memory; safe to repeat."""
        self._embedder.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
