"""The LLM body in ONNX Runtime, fed with embeddings: the only file of the runtime that touches `onnxruntime`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mtllm_edge import manifest
from mtllm_edge.errors import EngineError, UsageError
from mtllm_edge.formats.onnx import LLM_INPUTS, LLM_MASK, LLM_STATES
from mtllm_edge.framing import Spans
from mtllm_edge.llms.pooling import check_inputs, span_means

_LOG_FATAL = 4  # what goes wrong arrives as an exception, too
onnxruntime.set_default_logger_severity(_LOG_FATAL)
onnxruntime.disable_telemetry_events()  # Windows builds have them


class OnnxLlm:
    """One ONNX Runtime session; safe to use from several threads."""

    pads = True

    def __init__(self, path: Path, expected: manifest.Llm, *, threads: int) -> None:
        """Load an ONNX file.

        Args:
            path: The file, whose structure has been checked.
            expected: The manifest's word on it.
            threads: CPU threads.

        Raises:
            EngineError: ONNX Runtime refuses the file or lacks the memory.
        """
        self._path, self._n_embd = path, expected.n_embd
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), session_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own classes, all of them direct heirs of Exception
            raise EngineError(f"{path}: ONNX Runtime cannot load it ({_one_line(error)})") from None

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Means over the final states; arguments and result as for `mtllm_edge.llms.base.Llm.pool`.

        Where weights are int8, the inputs of a matrix share one scale in the whole batch, so that a text's vector
        depends a little on its company.

        Raises:
            UsageError: An adapter is asked for, which only an LLM in GGUF can wear.
            EngineError: The batch holds numbers that are not finite, ONNX Runtime failed, or it is closed.
        """
        if adapter is not None:
            raise UsageError(f"{self._path}: an LLM in ONNX wears no adapters; use the form in GGUF for {adapter!r}")
        session = self._session
        if session is None:
            raise EngineError(f"{self._path}: the LLM is closed; load the bundle again")
        if not batch:
            return np.empty((0, self._n_embd), np.float32)
        check_inputs(batch, n_embd=self._n_embd, path=self._path)
        try:
            (states_NLE,) = session.run([LLM_STATES], padded(batch))
        except Exception as error:  # as above
            raise EngineError(f"{self._path}: ONNX Runtime failed ({_one_line(error)})") from None
        expected = (len(batch), max(map(len, batch)), self._n_embd)
        if states_NLE.shape != expected:
            raise EngineError(f"{self._path}: ONNX Runtime returned shape {states_NLE.shape}, expected {expected}")
        states = [states_LE[: len(inputs_LE)] for states_LE, inputs_LE in zip(states_NLE, batch, strict=True)]
        if not all(np.isfinite(states_LE).all() for states_LE in states):
            raise EngineError(f"{self._path}: ONNX Runtime returned numbers that are not finite; export it again")
        return span_means(states, spans)

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
        self._session = None


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of a session: threads that sleep while they wait, as in the other engines (`machine.calm_openmp`)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _LOG_FATAL
    return options


def padded(batch: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """The graph's inputs: each text's (length, n_embd), zeros after its end, and the mask of what is text."""
    lengths_N = np.array([len(inputs_LE) for inputs_LE in batch])
    mask_NL = np.arange(lengths_N.max()) < lengths_N[:, None]
    inputs_NLE = np.zeros((*mask_NL.shape, batch[0].shape[1]), np.float32)
    inputs_NLE[mask_NL] = np.concatenate(list(batch))
    return {LLM_INPUTS: inputs_NLE, LLM_MASK: mask_NL.astype(np.int64)}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
