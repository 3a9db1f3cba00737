"""Encoder in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.checks import check_ids
from mtllm_edge.backends.onnx_session import OnnxSession
from mtllm_edge.bundle.formats.onnx import ENCODER_IDS, WORD_EMBEDDINGS, read_graph
from mtllm_edge.bundle.manifest import EncoderSpec


class OnnxEncoder:
    """An ONNX Runtime session; safe to use from several threads."""

    pads = True

    def __init__(self, path: Path, spec: EncoderSpec, *, threads: int) -> None:
        """Load the bundle's `encoder.onnx`, with a checked structure.

        Raises:
            EngineError: ONNX Runtime refuses the file or lacks memory.
        """
        self._path = path
        self._vocabulary_size = read_graph(path).initializers[WORD_EMBEDDINGS][1][0]
        self._session = OnnxSession(path, part="encoder", width=spec.d_model, threads=threads)

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Return the hidden states of token id sequences, each (length, d_model), without padding.

        With int8 weights, the inputs of a matrix share one scale in the whole batch, so that a text's states depend
        slightly on the other texts.

        Raises:
            ModelError: An id is outside the encoder's vocabulary.
            EngineError: ONNX Runtime failed, returned numbers that are not finite, or is closed.
        """
        if not batch:
            return []
        check_ids(batch, vocabulary_size=self._vocabulary_size, path=self._path)
        return self._session.states(ENCODER_IDS, [np.array(ids, np.int64) for ids in batch])

    def close(self) -> None:
        """Free the memory; may be called repeatedly."""
        self._session.close()
