"""The encoder in CTranslate2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.backends.encoders.base import check_ids
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.formats.ctranslate2 import read_shapes
from mtllm_edge.errors import EngineError
from mtllm_edge.safe_text import one_line

configure_openmp()
import ctranslate2  # noqa: E402 (its OpenMP reads the environment when it is loaded)


class CTranslate2Encoder:
    """A `ctranslate2.Encoder`; safe to use from several threads."""

    pads = False
    """It leaves padding out of all but attention."""

    def __init__(
        self, folder: Path, expected: manifest.EncoderSpec, *, threads: int, device: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        """Load the model folder.

        Args:
            folder: The bundle's `encoder/`, whose header has been checked.
            expected: The manifest's word on it.
            threads: CPU threads.
            device: Where it computes. On CUDA, weights in int8 become float32 where the GPU has no arithmetic for them.

        Raises:
            EngineError: CTranslate2 refuses the folder, the quantisation or the device.
        """
        self._on_cpu = device == "cpu"
        self._folder = folder
        self._d_model = expected.d_model
        self._vocabulary_size = read_shapes(folder / "model.bin")["encoder/embeddings_0/weight"][0]
        try:
            self._encoder: ctranslate2.Encoder | None = ctranslate2.Encoder(
                str(folder),
                device=device,
                compute_type=_compute_type(expected.quantization, device),
                inter_threads=1,
                intra_threads=threads,
            )
        except Exception as error:  # C++ exceptions arrive as RuntimeError, ValueError, IndexError ...
            raise EngineError(
                f"{folder}: CTranslate2 cannot load it ({one_line(error)}); see `mtllm-edge doctor`"
            ) from None

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Hidden states of a batch of token id sequences, each (length, d_model), without padding.

        Raises:
            ModelError: An id lies outside the encoder's vocabulary.
            EngineError: CTranslate2 failed, or the encoder is closed.
        """
        if self._encoder is None:
            raise EngineError(f"{self._folder}: the encoder is closed; load the bundle again")
        if not batch:
            return []
        check_ids(batch, vocabulary_size=self._vocabulary_size, path=self._folder)
        try:
            output = self._encoder.forward_batch([list(ids) for ids in batch])
            states = output.last_hidden_state
            if not self._on_cpu:  # numpy cannot read a GPU's memory
                states = states.to_device(ctranslate2.Device.cpu)
            hidden_NLD = np.array(states, dtype=np.float32)
        except Exception as error:  # as above
            raise EngineError(
                f"{self._folder}: CTranslate2 failed ({one_line(error)}); see `mtllm-edge doctor`"
            ) from None
        expected = (len(batch), max(map(len, batch)), self._d_model)
        if hidden_NLD.shape != expected:
            raise EngineError(f"{self._folder}: CTranslate2 returned shape {hidden_NLD.shape}, expected {expected}")
        hidden = [hidden_LD[: len(ids)] for hidden_LD, ids in zip(hidden_NLD, batch, strict=True)]
        if not all(np.isfinite(hidden_LD).all() for hidden_LD in hidden):
            raise EngineError(f"{self._folder}: the encoder returned numbers that are not finite; export it again")
        return hidden

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
        self._encoder = None


def cuda_devices() -> tuple[str, int, tuple[str, ...]]:
    """CTranslate2's version, how many CUDA devices it sees, and what it computes with on them; for child processes."""
    count = ctranslate2.get_cuda_device_count()
    types = sorted(ctranslate2.get_supported_compute_types("cuda")) if count else []
    return ctranslate2.__version__, count, tuple(types)


def _compute_type(quantization: str, device: str) -> str:
    if device == "cpu" or quantization in ctranslate2.get_supported_compute_types(device):
        return quantization
    return "float32"
