"""The child of `mtllm_edge.backends.probing.gpu`: lists the GPUs, or runs an encoder on CUDA.

Run as ``python -m mtllm_edge.backends.probing.gpu_child look`` or ``... encode FOLDER ENCODER``, where ENCODER is
the manifest's part as
JSON. The last line of the output is `GpuInventory` or `EncoderTrial` of `mtllm_edge.backends.probing.gpu` as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.gpu import EncoderTrial, GpuInventory
from mtllm_edge.backends.probing.llama_cpp import min_cosine
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.formats.ctranslate2 import read_shapes
from mtllm_edge.errors import MtllmError
from mtllm_edge.safe_text import one_line

_LENGTHS = (1, 7, 40)
_SEED = 20240618


def detect_gpus() -> GpuInventory:
    """What the engines see; one that cannot be imported sees nothing."""
    llama: tuple[str, ...] = ()
    compute_types: tuple[str, ...] = ()
    version, cuda = "", 0
    try:
        from mtllm_edge.backends.llms.devices import gpus

        llama = gpus()
    except (ImportError, OSError, RuntimeError, AttributeError):
        pass
    try:
        from mtllm_edge.backends.encoders.ctranslate2 import cuda_devices

        version, cuda, compute_types = cuda_devices()
    except (ImportError, OSError, RuntimeError, AttributeError):
        pass
    return GpuInventory(llama=llama, ctranslate2=version, cuda=cuda, compute_types=compute_types)


def try_encoder(folder: Path, expected: manifest.EncoderSpec) -> EncoderTrial:
    """Encode random ids on CUDA, and in float32 on the CPU: int8 on CPUs without VNNI is no measure."""
    rng = np.random.default_rng(_SEED)
    known = read_shapes(folder / "model.bin")["encoder/embeddings_0/weight"][0]
    lengths = [min(length, expected.max_tokens) for length in _LENGTHS]
    batch = [rng.integers(0, known, length).tolist() for length in lengths]
    exact = msgspec.structs.replace(expected, quantization="float32")
    reference_ND = _means(folder, exact, batch, "cpu")
    return EncoderTrial(cosine=min_cosine(_means(folder, expected, batch, "cuda"), reference_ND))


def _means(
    folder: Path, expected: manifest.EncoderSpec, batch: list[list[int]], device: Literal["cpu", "cuda"]
) -> NDArray[np.float32]:
    """Mean state of each text, (texts, d_model)."""
    from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder

    encoder = CTranslate2Encoder(folder, expected, threads=default_threads(), device=device)
    try:
        return np.stack([hidden_LD.mean(axis=0) for hidden_LD in encoder.encode(batch)])
    finally:
        encoder.close()


def main(arguments: list[str]) -> None:
    """Do what the command line says and print the result."""
    child_process.disable_core_dumps()
    result: GpuInventory | EncoderTrial
    if arguments == ["detect_gpus"]:
        result = detect_gpus()
    else:
        _, folder, described = arguments
        try:
            result = try_encoder(Path(folder), msgspec.json.decode(described, type=manifest.EncoderSpec))
        except (MtllmError, ImportError, OSError) as error:
            result = EncoderTrial(
                error=one_line(error).removeprefix(f"{folder}: ").removesuffix("; see `mtllm-edge doctor`")
            )
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
