"""ONNX Runtime session of an encoder or an LLM: the only file of the runtime that imports `onnxruntime`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.checks import unpad
from mtllm_edge.backends.cpu import disable_telemetry
from mtllm_edge.bundle.formats.onnx import MASK, STATES
from mtllm_edge.errors import EngineError
from mtllm_edge.safe_text import one_line

disable_telemetry()
import onnxruntime  # noqa: E402

_LOG_FATAL = 4  # errors are raised as exceptions, too
onnxruntime.set_default_logger_severity(_LOG_FATAL)
onnxruntime.disable_telemetry_events()  # of builds that do not read the environment


class OnnxSession:
    """A model that maps a batch padded on the right, and its mask, to states; safe to use from several threads."""

    def __init__(self, path: Path, *, part: str, width: int, threads: int) -> None:
        """Load an ONNX file with a checked structure and states of `width`; `part` is its name in messages.

        Raises:
            EngineError: ONNX Runtime refuses the file or lacks memory.
        """
        self._path, self._part, self._width = path, part, width
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path),
                session_options(threads),
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # to the same provider, with a banner on the standard output
            )
        except Exception as error:  # its own classes are direct subclasses of Exception
            raise EngineError(f"{path}: ONNX Runtime cannot load it ({one_line(error)})") from None

    def states(self, name: str, batch: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the states of each text, (length, width), without padding.

        `name` is the graph's input besides the mask, `batch` its value for each text, (length, ...), at least one row.

        Raises:
            EngineError: ONNX Runtime failed, returned numbers that are not finite, or is closed.
        """
        session = self._session
        if session is None:
            raise EngineError(f"{self._path}: the {self._part} is closed; load the bundle again")
        try:
            (states_NLD,) = session.run([STATES], pad(name, batch))
        except Exception as error:  # as above
            raise EngineError(f"{self._path}: ONNX Runtime failed ({one_line(error)})") from None
        return unpad(states_NLD, batch, width=self._width, origin=f"{self._path}: ONNX Runtime")

    def close(self) -> None:
        """Free the memory; may be called repeatedly."""
        self._session = None


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return session options with threads that sleep while they wait (see `cpu.configure_openmp`)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format would not be checked
    options.log_severity_level = _LOG_FATAL
    return options


def pad(name: str, batch: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the graph's inputs: the batch, each text (length, ...), padded on the right with zeros, and its mask."""
    lengths_N = np.array([len(text) for text in batch])
    mask_NL = np.arange(lengths_N.max()) < lengths_N[:, None]
    inputs_NL_ = np.zeros((*mask_NL.shape, *batch[0].shape[1:]), batch[0].dtype)
    inputs_NL_[mask_NL] = np.concatenate(list(batch))
    return {name: inputs_NL_, MASK: mask_NL.astype(np.int64)}
