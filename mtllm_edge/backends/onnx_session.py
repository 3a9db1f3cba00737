"""ONNX Runtime around the encoder's or the LLM's file: the only file of the runtime that touches `onnxruntime`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.cpu import disable_telemetry
from mtllm_edge.bundle.formats.onnx import MASK, STATES
from mtllm_edge.errors import EngineError
from mtllm_edge.safe_text import one_line

disable_telemetry()
import onnxruntime  # noqa: E402

_LOG_FATAL = 4  # what goes wrong arrives as an exception, too
onnxruntime.set_default_logger_severity(_LOG_FATAL)
onnxruntime.disable_telemetry_events()  # of builds that do not read the environment


class OnnxSession:
    """A file that maps a batch padded on the right, and its mask, to states; safe to use from several threads."""

    def __init__(self, path: Path, *, part: str, width: int, threads: int) -> None:
        """Load an ONNX file.

        Args:
            path: The file, whose structure has been checked.
            part: What it is, for messages.
            width: That of its states.
            threads: CPU threads.

        Raises:
            EngineError: ONNX Runtime refuses the file or lacks the memory.
        """
        self._path, self._part, self._width = path, part, width
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path),
                session_options(threads),
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # to the same provider, with a banner on the standard output
            )
        except Exception as error:  # its own classes, all of them direct heirs of Exception
            raise EngineError(f"{path}: ONNX Runtime cannot load it ({one_line(error)})") from None

    def states(self, inputs: str, batch: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """States of each text, (length, width), without padding.

        Args:
            inputs: Name of the graph's input beside the mask.
            batch: What it reads of each text, one or more rows or numbers.

        Raises:
            EngineError: ONNX Runtime failed, gave numbers that are not finite, or is closed.
        """
        session = self._session
        if session is None:
            raise EngineError(f"{self._path}: the {self._part} is closed; load the bundle again")
        try:
            (states_NLD,) = session.run([STATES], padded(inputs, batch))
        except Exception as error:  # as above
            raise EngineError(f"{self._path}: ONNX Runtime failed ({one_line(error)})") from None
        expected = (len(batch), max(map(len, batch)), self._width)
        if states_NLD.shape != expected:
            raise EngineError(f"{self._path}: ONNX Runtime returned shape {states_NLD.shape}, expected {expected}")
        states = [states_LD[: len(text)] for states_LD, text in zip(states_NLD, batch, strict=True)]
        if not all(np.isfinite(states_LD).all() for states_LD in states):
            raise EngineError(f"{self._path}: ONNX Runtime returned numbers that are not finite; export it again")
        return states

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
        self._session = None


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of a session: threads that sleep while they wait, as in the other engines (`machine.calm_openmp`)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format would not be checked
    options.log_severity_level = _LOG_FATAL
    return options


def padded(inputs: str, batch: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The graph's inputs: what it reads of each text, (length, ...), zeros after that, and the mask of what is text."""
    lengths_N = np.array([len(text) for text in batch])
    mask_NL = np.arange(lengths_N.max()) < lengths_N[:, None]
    inputs_NL_ = np.zeros((*mask_NL.shape, *batch[0].shape[1:]), batch[0].dtype)
    inputs_NL_[mask_NL] = np.concatenate(list(batch))
    return {inputs: inputs_NL_, MASK: mask_NL.astype(np.int64)}
