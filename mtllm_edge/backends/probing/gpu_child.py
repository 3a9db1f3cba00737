"""Child process of `mtllm_edge.backends.probing.gpu`: lists the GPUs, or runs an encoder on CUDA.

Run as ``python -m mtllm_edge.backends.probing.gpu_child detect`` or ``... encode FOLDER ENCODER``: ENCODER is its part
of the manifest as JSON. The last line of the output is a `GpuInventory` or an `EncoderTrial` as JSON.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.gpu import Device, EncoderTrial, GpuInventory
from mtllm_edge.backends.probing.llama_cpp import PROBE_LENGTHS, PROBE_SEED, min_cosine
from mtllm_edge.bundle.formats.ctranslate2 import read_shapes
from mtllm_edge.bundle.manifest import EncoderSpec
from mtllm_edge.errors import MtllmError

_IMPORT_ERRORS = (ImportError, OSError, RuntimeError, AttributeError)


def detect_gpus() -> GpuInventory:
    """List the engines' GPUs; none for an engine that cannot be imported."""
    gpus: dict[str, Any] = {}
    with suppress(*_IMPORT_ERRORS):
        from mtllm_edge.backends.llms.llama_cpp import gpu_names

        gpus["llama"] = gpu_names()
    with suppress(*_IMPORT_ERRORS):
        from mtllm_edge.backends.encoders.ctranslate2 import cuda_devices

        gpus["ctranslate2"], gpus["cuda"], gpus["compute_types"] = cuda_devices()
    return GpuInventory(**gpus)


def try_encoder(folder: Path, encoder: EncoderSpec) -> EncoderTrial:
    """Encode random ids on CUDA and on the CPU, there in float32: int8 is inexact on CPUs without VNNI."""
    rng = np.random.default_rng(PROBE_SEED)
    vocabulary_size = read_shapes(folder / "model.bin")["encoder/embeddings_0/weight"][0]
    lengths = [min(length, encoder.max_tokens) for length in PROBE_LENGTHS]
    batch = [rng.integers(0, vocabulary_size, length).tolist() for length in lengths]
    float32 = msgspec.structs.replace(encoder, quantization="float32")
    reference_ND = _means(folder, float32, batch, "cpu")
    return EncoderTrial(cosine=min_cosine(_means(folder, encoder, batch, "cuda"), reference_ND))


def _means(folder: Path, encoder: EncoderSpec, batch: list[list[int]], device: Device) -> NDArray[np.float32]:
    """Mean state of each text, (texts, d_model)."""
    from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder

    engine = CTranslate2Encoder(folder, encoder, threads=default_threads(), device=device)
    try:
        return np.stack([hidden_LD.mean(axis=0) for hidden_LD in engine.encode(batch)])
    finally:
        engine.close()


def main(arguments: list[str]) -> None:
    """Run the command of the command line and print its result."""
    child_process.disable_core_dumps()
    result: GpuInventory | EncoderTrial
    if arguments == ["detect"]:
        result = detect_gpus()
    else:
        _, folder, encoder = arguments
        try:
            result = try_encoder(Path(folder), msgspec.json.decode(encoder, type=EncoderSpec))
        except (MtllmError, ImportError, OSError) as error:
            result = EncoderTrial(error=child_process.engine_error(error, folder))
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
