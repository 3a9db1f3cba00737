"""The worker thread: load the bundle, then compute the queued batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.embedder import Embedder
from mtllm_edge.inputs import Input, check_kind
from mtllm_edge.server.batcher import Batcher
from mtllm_edge.server.errors import RequestError
from mtllm_edge.server.limits import Limits
from mtllm_edge.tasks.calibration import resolve_abstention
from mtllm_edge.tasks.head import load_heads
from mtllm_edge.tasks.prediction import predict
from mtllm_edge.tokenization.windows import Windows


class Model:
    """Embedder and task heads of a bundle."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, llm_backend: LlmBackend | None = None) -> None:
        """Load a bundle; arguments and errors as for `Embedder.load`."""
        self._heads = load_heads(bundle)
        self._embedder = Embedder.load(bundle, threads=threads, llm_backend=llm_backend)

    def encode(
        self, texts: Sequence[Input], task: str | None, language: str | Sequence[str | None] | None
    ) -> tuple[Sequence[Any], list[int]]:
        """Return the tokenized texts of a request, and the number of tokens of each; no task means embeddings.

        An invalid text thus fails its own request, not those in the same batch. Errors as for `Classifier.classify`.
        """
        encoded = self._embedder.encode(texts, language=language)
        if task is None:
            check_kind(texts, "sequence", "the embedder")
        else:
            check_kind(texts, self._heads[task].kind, f"task {task!r}")
        return encoded, [len(text.ids) for text in encoded]

    def compute(self, task: str | None, items: list[Any]) -> Sequence[Any]:
        """Return the prediction of each encoded text, or its embedding (n_embd,) if `task` is None."""
        pooled_VE = self._embedder.pool(items, task=task)
        if task is None:
            return list(pooled_VE)
        head = self._heads[task]
        return predict(head, Windows(items, [1] * len(items)), pooled_VE, *resolve_abstention(head, None, None))

    def close(self) -> None:
        """Free the memory of the engines."""
        self._embedder.close()


class Worker:
    """Thread that owns the model."""

    def __init__(
        self,
        load: Callable[[], Model],
        limits: Limits,
        *,
        observe: Callable[[int, int], None],
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the thread; `start` starts it.

        `on_ready` is called once the model is loaded, `on_failure` if loading fails or the thread dies; `failure` then
        has the exception. `observe` is that of `Batcher`.
        """
        self.batcher: Batcher[str | None, Any, Any] = Batcher(
            lambda task, items: self.model.compute(task, items),
            max_waiting=limits.max_queued_texts,
            batch_tokens=limits.batch_tokens,
            observe=observe,
        )
        self.failure: BaseException | None = None
        self._model: Model | None = None
        self._load, self._on_ready, self._on_failure = load, on_ready, on_failure
        self._thread = threading.Thread(target=self._run, name="mtllm-edge-worker", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        return self._model is not None

    @property
    def model(self) -> Model:
        """The loaded model; raises RequestError until it is loaded."""
        if self._model is None:
            raise RequestError(503, "the model is loading; try again in a moment", headers={"Retry-After": "1"})
        return self._model

    def start(self) -> None:
        """Start to load the model."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread after its current batch, and free the model; return whether it ended within the timeout."""
        self.batcher.close()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        if self._model is not None:
            self._model.close()
        return True

    def _run(self) -> None:
        try:
            self._model = self._load()
            self._on_ready()
            self.batcher.run()
        except BaseException as error:  # without this the server would wait for the thread forever
            self.failure = error
            self.batcher.close()
            self._on_failure()
