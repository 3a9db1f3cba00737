"""Texts to labels with probabilities, by the tasks of a bundle or by one that is fitted to labelled texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.probing.offload import GpuLayers
from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.embedder import Embedder, warn_truncated
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.extras import require
from mtllm_edge.inputs import Input, Kind, check_kind, kind_of
from mtllm_edge.tasks.calibration import resolve_abstention
from mtllm_edge.tasks.cross_validation import Groups, validate_groups
from mtllm_edge.tasks.fitting import FitReport, fit_head, unique_indices, validate_labels
from mtllm_edge.tasks.head import Head, load_heads
from mtllm_edge.tasks.prediction import Prediction, predict
from mtllm_edge.tasks.store import add_task, task_source
from mtllm_edge.tokenization.windows import LongTexts, check_long_texts


class Classifier:
    """A bundle with its task heads; one object may serve several threads.

    `fit` teaches it another task, in scikit-learn's conventions::

        classifier = Classifier(Embedder.load("bundle")).fit(texts, labels)
        classifier.predict(["Bitte sofort zurückrufen!"])
        classifier.save_task("urgency")
    """

    def __init__(self, embedder: Embedder, heads: Mapping[str, Head] | None = None, task: str | None = None) -> None:
        """Join loaded parts; to use the tasks of a bundle, `Classifier.load`.

        Args:
            embedder: The loaded bundle.
            heads: The heads of its tasks; None reads them.
            task: The task that `classify` performs unless told otherwise; None leaves that to `fit`.
        """
        self._embedder = embedder
        loaded = load_heads(embedder.bundle) if heads is None else heads
        self._heads: dict[str | None, Head] = {name: loaded[name] for name in loaded}
        self._task = task
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
        """Load a bundle.

        Args:
            bundle: The bundle, its folder, or the name of an installed one.
            task: The task that `classify` performs unless told otherwise; None takes the bundle's only one.
            threads: CPU threads of the engines; None takes the cores open to this process, at most 8.
            llm_backend: Form of the LLM, ``gguf`` or ``onnx``; None takes the only one, or the better one here.
            gpu_layers: Layers of the LLM that go to a GPU, or ``all``; the encoder goes along (see
            `mtllm_edge.backends.probing.offload`).

        Warns:
            GpuWarning: A GPU was asked for, and something runs on the CPU all the same.

        Raises:
            UsageError: `bundle` is no folder, or lacks the form; it has no such task, or several and none is named;
                `threads` or `gpu_layers` is out of bounds.
            ModelError: The bundle is incomplete or damaged.
            EngineError: An engine is missing or refuses.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        heads = load_heads(bundle)
        task = bundle.task_name(task)
        embedder = Embedder.load(bundle, threads=threads, llm_backend=llm_backend, gpu_layers=gpu_layers)
        return cls(embedder, heads, task)

    @property
    def task(self) -> str | None:
        """The task that `classify` performs unless told otherwise; None is that of `fit`, until it is saved."""
        return self._task

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of `task`, in the order of its head; none for multiple choice."""
        return self._head(None).labels

    @property
    def classes_(self) -> NDArray[np.str_]:
        """The same as an array: scikit-learn's name for it."""
        return np.array(self.labels, dtype=np.str_)

    @property
    def kind(self) -> Kind:
        """What `task` reads: ``sequence`` a text, ``pair`` two of them, ``multiple_choice`` a text with choices."""
        return self._head(None).kind

    @property
    def report_(self) -> FitReport:
        """What cross-validation says of the task of `fit`.

        Raises:
            UsageError: Nothing was fitted.
        """
        if self._report is None:
            raise UsageError("nothing was fitted yet; call fit(texts, labels) first")
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
            texts: The texts, in any languages that the encoder knows: strings, or what else the task reads, tuples
                ``(text, text_pair)`` or ``(text, [choice, choice, ...])``.
            task: Another task of the bundle than the one chosen in `load`.
            language: Code or name of the language of all texts, or one for each; ``auto`` identifies it (extra [lang]).
                Encoders with language tokens must be told; for others it is noted in `Prediction.language`, and picks
                the temperature where the task has them by language.
            long_texts: Treatment of texts longer than the encoder takes: ``cut`` drops their ends, as in training;
                ``pool`` reads them in windows and averages the windows' vectors by their tokens (tasks on single texts
                only).
            threshold: Confidence, 0 to 1, below which the task abstains; None takes the task's own, 0 is never.
            abstain: The label that is given then; None takes the task's own, or ``unsure``.
            progress: Called after every batch with the number of texts in it.

        Returns:
            A prediction for every text, in their order; a cut text says so in `Prediction.truncated`.

        Warns:
            LanguageWarning: Some texts are read as another language than their own.

        Raises:
            DataError: A text is empty or not a string, or not of the task's kind.
            UsageError: The task is unknown, or the language missing or unknown; windows are not for this kind; or the
                task cannot abstain like that.
            EngineError: An engine failed.
        """
        head = self._head(task)
        reader = f"task {task or self._task!r}"
        check_long_texts(long_texts, head.kind, reader)
        limit, unsure = resolve_abstention(head, threshold, abstain)
        windows = self._embedder.windows(texts, language=language, long_texts=long_texts)
        check_kind(texts, head.kind, reader)
        pooled_VE = self._embedder.pool(
            windows.encodings, task=task or self._task, progress=windows.text_progress(progress)
        )
        return predict(head, windows, pooled_VE, limit, unsure)

    def fit(
        self,
        texts: Sequence[Input],
        labels: Sequence[str],
        *,
        language: str | None = None,
        groups: Groups | None = None,
    ) -> Classifier:
        """Learn a task from labelled texts: a calibrated logistic regression on the bundle's vectors.

        The bundle itself is left as it is; `save_task` writes the task into it. Texts that come twice with the same
        label count once.

        Args:
            texts: The texts, or pairs ``(text, text_pair)``.
            labels: The label of each, a word; two different texts or more of every label.
            language: Code or name of the language of all texts, or ``auto``, for encoders that must be told.
            groups: What each belongs to, a word or a number: the texts of one document or author are judged, in
                cross-validation, by a head that has seen none of them. None is a group for each.

        Returns:
            The classifier itself, whose `task` is the fitted one now.

        Warns:
            TruncationWarning: Some texts were cut.

        Raises:
            DataError: A text, label or group cannot be used, their numbers differ, or nothing can be learned of them.
            UsageError: scikit-learn is not installed, the task is one of multiple choice, or the language is wrong.
            EngineError: An engine failed.
        """
        require("fit", "sklearn")
        texts, labels, groups = list(texts), list(labels), None if groups is None else list(groups)
        if len(texts) != len(labels):
            raise DataError(f"there are {len(texts)} texts and {len(labels)} labels; give one of each")
        validate_labels(labels)
        if groups is not None:
            validate_groups(labels, groups)
        kept = unique_indices(texts, labels)
        texts, labels = [texts[index] for index in kept], [labels[index] for index in kept]
        groups = None if groups is None else [groups[index] for index in kept]
        validate_labels(labels)
        kind = kind_of(texts[0]) or "sequence"
        encoded = self._embedder.encode(texts, language=language)
        check_kind(texts, kind, "a task that reads the first text")
        warn_truncated(encoded, self._embedder.bundle.manifest.encoder.max_tokens)
        head, report = fit_head(self._embedder.pool(encoded), labels, kind, groups=groups)
        self._heads = {**self._heads, None: head}
        self._task, self._report = None, report
        return self

    def predict(
        self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None
    ) -> NDArray[np.str_]:
        """The most probable label of each text, (texts,), never that it abstains; otherwise as `classify`."""
        predictions = self.classify(texts, language=language, threshold=0)
        return np.array([prediction.label for prediction in predictions], dtype=np.str_)

    def predict_proba(
        self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None
    ) -> NDArray[np.float64]:
        """Probability of every label, (texts, labels) in the order of `classes_`; arguments as for `classify`.

        Raises:
            UsageError: As for `classify`, or the task is one of multiple choice, whose texts have no classes in common.
        """
        if self.kind == "multiple_choice":
            raise UsageError("the choices of a text are no classes; use classify, whose predictions have probabilities")
        predictions = self.classify(texts, language=language)
        rows = [[*prediction.probabilities.values()] for prediction in predictions]
        return np.array(rows, np.float64).reshape(len(rows), len(self.labels))

    def save_task(self, name: str, *, license: str | None = None, force: bool = False) -> None:
        """Write the task of `fit` into the bundle, whose folder is changed in one step; it has this name then.

        Args:
            name: The task's.
            license: Under which it may be used, an SPDX identifier; None claims none.
            force: Replace a task of that name.

        Raises:
            UsageError: Nothing was fitted, or the name is taken, or the license is none.
            ModelError: The bundle is damaged.
        """
        head = self._heads.get(None)
        if head is None:
            raise UsageError("nothing was fitted yet; call fit(texts, labels) first")
        source = task_source(name, "labelled texts", license)
        self._embedder.bundle = add_task(self._embedder.bundle, name, head, source=source, force=force)
        self._heads = {**self._heads, name: head}
        self._task = name

    def _head(self, task: str | None) -> Head:
        """The head of a task of the bundle, or, of None, of the one that was chosen or fitted."""
        if task is not None and task not in self._heads:
            self._embedder.bundle.task_name(task)  # raises, unless it was added by somebody else meanwhile
        try:
            return self._heads[self._task if task is None else task]
        except KeyError:
            raise UsageError("the classifier has no task yet; call fit(texts, labels), or name one") from None

    def close(self) -> None:
        """Give the engines' memory back; harmless when repeated."""
        self._embedder.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
