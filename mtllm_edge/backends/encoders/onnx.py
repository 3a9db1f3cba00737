"""The encoder in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.encoders.base import check_ids
from mtllm_edge.backends.onnx_session import OnnxSession
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.formats.onnx import ENCODER_IDS, WORD_EMBEDDINGS, read_graph


class OnnxEncoder:
    """One ONNX Runtime session; safe to use from several threads."""

    pads = True

    def __init__(self, path: Path, expected: manifest.EncoderSpec, *, threads: int) -> None:
        """Load an ONNX file.

        Args:
            path: The bundle's `encoder.onnx`, whose structure has been checked.
            expected: The manifest's word on it.
            threads: CPU threads.

        Raises:
            EngineError: ONNX Runtime refuses the file or lacks the memory.
        """
        self._path = path
        self._vocabulary_size = read_graph(path).initializers[WORD_EMBEDDINGS][1][0]
        self._session = OnnxSession(path, part="encoder", width=expected.d_model, threads=threads)

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Hidden states of a batch of token id sequences, each (length, d_model), without padding.

        Where weights are int8, the inputs of a matrix share one scale in the whole batch, so that a text's states
        depend a little on its company.

        Raises:
            ModelError: An id lies outside the encoder's vocabulary.
            EngineError: ONNX Runtime failed, gave numbers that are not finite, or is closed.
        """
        if not batch:
            return []
        check_ids(batch, vocabulary_size=self._vocabulary_size, path=self._path)
        return self._session.states(ENCODER_IDS, [np.array(ids, np.int64) for ids in batch])

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
        self._session.close()
