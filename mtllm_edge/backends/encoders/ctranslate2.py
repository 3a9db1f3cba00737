"""Encoder in CTranslate2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.checks import check_ids, unpad
from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.bundle.formats.ctranslate2 import read_shapes
from mtllm_edge.bundle.manifest import EncoderSpec
from mtllm_edge.errors import EngineError
from mtllm_edge.safe_text import one_line

configure_openmp()
import ctranslate2  # noqa: E402 (its OpenMP reads the environment when it is loaded)


class CTranslate2Encoder:
    """A `ctranslate2.Encoder`; safe to use from several threads."""

    pads = False
    """CTranslate2 computes padding in attention only."""

    def __init__(
        self, folder: Path, spec: EncoderSpec, *, threads: int, device: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        """Load the bundle's `encoder/`, with a checked header.

        On GPUs without int8 arithmetic, weights in int8 become float32.

        Raises:
            EngineError: CTranslate2 refuses the folder, the quantization or the device.
        """
        self._on_cpu = device == "cpu"
        self._folder, self._d_model = folder, spec.d_model
        self._vocabulary_size = read_shapes(folder / "model.bin")["encoder/embeddings_0/weight"][0]
        try:
            self._encoder: ctranslate2.Encoder | None = ctranslate2.Encoder(
                str(folder),
                device=device,
                compute_type=_compute_type(spec.quantization, device),
                inter_threads=1,
                intra_threads=threads,
            )
        except Exception as error:  # C++ exceptions arrive as RuntimeError, ValueError, IndexError ...
            raise EngineError(
                f"{folder}: CTranslate2 cannot load it ({one_line(error)}); see `mtllm-edge doctor`"
            ) from None

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Return the hidden states of token id sequences, each (length, d_model), without padding.

        Raises:
            ModelError: An id is outside the encoder's vocabulary.
            EngineError: CTranslate2 failed, or the encoder is closed.
        """
        if self._encoder is None:
            raise EngineError(f"{self._folder}: the encoder is closed; load the bundle again")
        if not batch:
            return []
        check_ids(batch, vocabulary_size=self._vocabulary_size, path=self._folder)
        try:
            states = self._encoder.forward_batch([list(ids) for ids in batch]).last_hidden_state
            if not self._on_cpu:  # numpy cannot read a GPU's memory
                states = states.to_device(ctranslate2.Device.cpu)
            hidden_NLD = np.array(states, dtype=np.float32)
        except Exception as error:  # as above
            raise EngineError(
                f"{self._folder}: CTranslate2 failed ({one_line(error)}); see `mtllm-edge doctor`"
            ) from None
        return unpad(hidden_NLD, batch, width=self._d_model, origin=f"{self._folder}: CTranslate2")

    def close(self) -> None:
        """Free the memory; may be called repeatedly."""
        self._encoder = None


def cuda_devices() -> tuple[str, int, tuple[str, ...]]:
    """Return CTranslate2's version, and the number and compute types of its CUDA devices; for child processes."""
    count = ctranslate2.get_cuda_device_count()
    types = sorted(ctranslate2.get_supported_compute_types("cuda")) if count else []
    return ctranslate2.__version__, count, tuple(types)


def _compute_type(quantization: str, device: str) -> str:
    if device == "cpu" or quantization in ctranslate2.get_supported_compute_types(device):
        return quantization
    return "float32"
