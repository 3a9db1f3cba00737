"""The LLM body in ONNX Runtime, fed with embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.llms.pooling import check_inputs, check_spans, span_means
from mtllm_edge.backends.onnx_session import OnnxSession
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.formats.onnx import LLM_INPUTS
from mtllm_edge.errors import UsageError
from mtllm_edge.tokenization.encoding import Spans


class OnnxLlm:
    """One ONNX Runtime session; safe to use from several threads."""

    pads = True

    def __init__(self, path: Path, expected: manifest.LlmSpec, *, threads: int) -> None:
        """Load an ONNX file.

        Args:
            path: The file, whose structure has been checked.
            expected: The manifest's word on it.
            threads: CPU threads.

        Raises:
            EngineError: ONNX Runtime refuses the file or lacks the memory.
        """
        self._path, self._n_embd = path, expected.n_embd
        self._session = OnnxSession(path, part="LLM", width=expected.n_embd, threads=threads)

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Means over the final states; arguments and result as for `mtllm_edge.backends.llms.base.Llm.pool`.

        Where weights are int8, the inputs of a matrix share one scale in the whole batch, so that a text's vector
        depends a little on its company.

        Raises:
            UsageError: An adapter is asked for, which only an LLM in GGUF can wear.
            EngineError: The batch holds numbers that are not finite, ONNX Runtime failed, or it is closed.
        """
        if adapter is not None:
            raise UsageError(f"{self._path}: an LLM in ONNX wears no adapters; use the form in GGUF for {adapter!r}")
        if not batch:
            return np.empty((0, self._n_embd), np.float32)
        check_inputs(batch, n_embd=self._n_embd, path=self._path)
        check_spans(spans, [len(inputs_LE) for inputs_LE in batch], path=self._path)
        return span_means(self._session.states(LLM_INPUTS, batch), spans)

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
        self._session.close()
