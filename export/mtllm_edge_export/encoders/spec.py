"""Manifest entry of an exported encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mtllm_edge.bundle.manifest import EncoderBackend, EncoderSpec

if TYPE_CHECKING:
    from mtllm_edge_train.models.encoder import LoadedEncoder

EncoderQuantization = Literal["float32", "int8"]


def encoder_spec(
    encoder: LoadedEncoder,
    backend: EncoderBackend,
    quantization: EncoderQuantization,
    *,
    max_tokens: int,
    float32_matrices: tuple[str, ...] = (),
) -> EncoderSpec:
    """Return the manifest entry of an encoder."""
    return EncoderSpec(
        family=encoder.family,
        backend=backend,
        quantization=quantization,
        d_model=encoder.d_model,
        max_tokens=max_tokens,
        prefix_tokens=encoder.prefix_tokens,
        suffix_tokens=encoder.suffix_tokens,
        float32_matrices=float32_matrices,
    )
