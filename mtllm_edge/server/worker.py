"""The loaded bundle, and the one thread that owns it: loading, then computing what the requests queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.embedder import Embedder
from mtllm_edge.inputs import Input, check_kind
from mtllm_edge.server.batcher import Batcher
from mtllm_edge.server.errors import RefusedError
from mtllm_edge.server.limits import Limits
from mtllm_edge.tasks.calibration import resolve_abstention
from mtllm_edge.tasks.head import load_heads
from mtllm_edge.tasks.prediction import predict
from mtllm_edge.tokenization.windows import Windows


@dataclass(frozen=True)
class Prepared:
    """Texts that the model is known to take."""

    items: Sequence[Any]
    tokens: list[int]
    """Of each."""


class Model:
    """A bundle with its engines."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, llm_backend: LlmBackend | None = None) -> None:
        """Load a bundle; arguments and errors as for `Embedder.load`."""
        self._heads = load_heads(bundle)
        self._embedder = Embedder.load(bundle, threads=threads, llm_backend=llm_backend)

    def prepare(
        self, texts: Sequence[Input], task: str | None, language: str | Sequence[str | None] | None
    ) -> Prepared:
        """Tokenize, so that a text that cannot be read fails its own request and not those it would share a batch with.

        Args:
            texts: Of one request.
            task: A task of the bundle; None is embeddings.
            language: Of all texts, or of each, as for `Classifier.classify`.

        Raises:
            DataError, UsageError: As for `Classifier.classify`.
        """
        encoded = self._embedder.encode(texts, language=language)
        if task is None:
            check_kind(texts, "sequence", "the embedder")
        else:
            check_kind(texts, self._heads[task].kind, f"task {task!r}")
        return Prepared(encoded, [len(text.ids) for text in encoded])

    def compute(self, task: str | None, items: list[Any]) -> Sequence[Any]:
        """A vector (n_embd,) or a prediction for each item of `prepare`, whatever their languages are."""
        pooled_VE = self._embedder.pool(items, task=task)
        if task is None:
            return list(pooled_VE)
        head = self._heads[task]
        return predict(head, Windows(items, [1] * len(items)), pooled_VE, *resolve_abstention(head, None, None))

    def close(self) -> None:
        """Give the engines' memory back."""
        self._embedder.close()


class Engine:
    """The thread."""

    def __init__(
        self,
        load: Callable[[], Model],
        limits: Limits,
        *,
        observe: Callable[[int, int], None],
        ready: Callable[[], None] = lambda: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare it; `start` starts it.

        Args:
            load: Loads the model.
            limits: Of the queue and of batches.
            observe: See `Batcher`.
            ready: Called when the model is loaded.
            failed: Called where that failed, or the thread died; `failure` says how.
        """
        self.batcher: Batcher[str | None, Any, Any] = Batcher(
            lambda task, items: self.model.compute(task, items),
            max_waiting=limits.waiting,
            batch_tokens=limits.batch_tokens,
            observe=observe,
        )
        self.failure: BaseException | None = None
        self._model: Model | None = None
        self._load, self._ready, self._failed = load, ready, failed
        self._thread = threading.Thread(target=self._run, name="mtllm-edge-engine", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        return self._model is not None

    @property
    def model(self) -> Model:
        """The loaded model.

        Raises:
            RefusedError: It is still being loaded.
        """
        if self._model is None:
            raise RefusedError(503, "the model is being loaded; try again in a moment", headers={"Retry-After": "1"})
        return self._model

    def start(self) -> None:
        """Start to load."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """End the thread after the batch that it is at, and free the model.

        Args:
            seconds: How long to wait for that.

        Returns:
            Whether it has ended.
        """
        self.batcher.close()
        self._thread.join(seconds)
        if self._thread.is_alive():
            return False
        if self._model is not None:
            self._model.close()
        return True

    def _run(self) -> None:
        try:
            self._model = self._load()
            self._ready()
            self.batcher.run()
        except BaseException as error:  # whatever it is, the server would wait for this thread for ever
            self.failure = error
            self.batcher.close()
            self._failed()
