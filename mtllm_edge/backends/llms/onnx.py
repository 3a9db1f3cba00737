"""LLM body in ONNX Runtime, with embeddings as its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.checks import check_inputs, check_spans
from mtllm_edge.backends.llms.base import span_means
from mtllm_edge.backends.onnx_session import OnnxSession
from mtllm_edge.bundle.formats.onnx import LLM_INPUTS
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.errors import UsageError
from mtllm_edge.tokenization.encoding import Spans


class OnnxLlm:
    """An ONNX Runtime session; safe to use from several threads."""

    pads = True

    def __init__(self, path: Path, spec: LlmSpec, *, threads: int) -> None:
        """Load an ONNX file with a checked structure.

        Raises:
            EngineError: ONNX Runtime refuses the file or lacks memory.
        """
        self._path, self._n_embd = path, spec.n_embd
        self._session = OnnxSession(path, part="LLM", width=spec.n_embd, threads=threads)

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Return means of the final states; arguments and result as for `mtllm_edge.backends.llms.base.Llm.pool`.

        With int8 weights, the inputs of a matrix share one scale in the whole batch, so that a text's vector depends
        slightly on the other texts.

        Raises:
            UsageError: An adapter is requested, which requires the LLM in GGUF.
            EngineError: The batch is invalid, ONNX Runtime failed, or it is closed.
        """
        if adapter is not None:
            raise UsageError(f"{self._path}: an LLM in ONNX has no adapters; use the GGUF backend for {adapter!r}")
        if not batch:
            return np.empty((0, self._n_embd), np.float32)
        check_inputs(batch, n_embd=self._n_embd, path=self._path)
        check_spans(spans, batch, path=self._path)
        return span_means(self._session.states(LLM_INPUTS, batch), spans)

    def close(self) -> None:
        """Free the memory; may be called repeatedly."""
        self._session.close()
