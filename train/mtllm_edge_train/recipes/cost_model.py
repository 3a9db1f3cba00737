"""What a training run needs, from the shapes of its models: memory, texts per device, hours, size of the bundle.

Everything is arithmetic on a stack whose tensors need not exist (torch's meta device); nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import gguf
from torch import nn

from mtllm_edge_train.checkpoints.config import LoraConfig
from mtllm_edge_train.models.stack import Stack

STUB_ROWS = 32
"""Rows of the embedding table that stands in for the vocabulary in an exported LLM body."""
_NF4_BYTES = 0.5 + 4 / 64
"""Per weight: 4 bits, and a float32 scale for every 64 (Dettmers et al. 2023, arXiv 2305.14314, without its second
quantisation)."""
_TRAINED_BYTES = {"weight": 4, "copy in bfloat16": 2, "gradient": 4, "AdamW": 8}
"""Per trained parameter; autocast keeps the copy between the forward and the backward pass."""
_RESERVE = 0.1
"""Fraction of a device's memory left to the driver, to workspaces and to fragmentation."""


class Device(NamedTuple):
    """A kind of GPU."""

    name: str
    gib: int
    flops: float
    """Peak of dense bfloat16 products with float32 sums, per second, as the vendor states it."""


DEVICES = (
    Device("RTX 4090, 24 GB", 24, 165e12),
    Device("A100, 40 GB", 40, 312e12),
    Device("A100, 80 GB", 80, 312e12),
)


class Parameters(NamedTuple):
    """Number of parameters by part."""

    encoder_embedding: int
    encoder_layers: int
    llm_embedding: int
    llm_matrices: int
    llm_norms: int
    bridge: int
    lora: int

    @property
    def trained(self) -> int:
        """Bridge and adapters."""
        return self.bridge + self.lora

    @property
    def frozen(self) -> int:
        """All the rest."""
        return sum(self) - self.trained

    def frozen_bytes(self) -> dict[str, int]:
        """Memory of the frozen weights: all in bfloat16, or the LLM's matrices in NF4."""
        rest = 2 * (self.frozen - self.llm_matrices)
        return {"bf16": rest + 2 * self.llm_matrices, "nf4": rest + round(_NF4_BYTES * self.llm_matrices)}

    def trained_bytes(self) -> dict[str, int]:
        """Memory of what is trained, by use."""
        return {use: size * self.trained for use, size in _TRAINED_BYTES.items()}


def count_parameters(stack: Stack) -> Parameters:
    """Count a stack's parameters by part; a table that is shared is counted once."""
    encoder: Any = stack.encoder
    encoder_embedding = encoder.get_input_embeddings().weight.numel()
    llm_embedding = stack.llm.model.get_input_embeddings().weight.numel()
    lora = [tensor for name, tensor in stack.llm.named_parameters() if ".lora_" in name]
    frozen = [tensor for name, tensor in stack.llm.named_parameters() if ".lora_" not in name]
    return Parameters(
        encoder_embedding=encoder_embedding,
        encoder_layers=_numel(encoder.parameters()) - encoder_embedding,
        llm_embedding=llm_embedding,
        llm_matrices=_numel(tensor for tensor in frozen if tensor.ndim == 2) - llm_embedding,
        llm_norms=_numel(tensor for tensor in frozen if tensor.ndim == 1),
        bridge=_numel(stack.bridge.parameters()),
        lora=_numel(lora),
    )


class Activations(NamedTuple):
    """Bytes per token that the LLM body keeps for its backward pass (bfloat16 autocast, fused attention).

    Frozen matrices keep nothing; each of the seven adapters keeps its input and the output of ``lora_A``.
    """

    layers: int
    layer: int
    """8d (two norms, float32) + 2(5d + q + f) (inputs of the adapters) + 14r + 8q + 4h (query, key, value and output of
    attention, keys repeated for every head, and its log-sums) + 6f (gate, its SiLU, up), and with dropout a mask of
    5d + q + f bytes. d is the width, q that of all heads, h their number, f that of the MLP, r the adapters' rank."""
    layer_input: int
    """2d: what gradient checkpointing keeps of a layer."""
    ends: int
    """2 d_encoder (input of the bridge) + 4d (last norm)."""
    transient: int
    """2(4d + 3f): what is alive within a layer besides, in the teacher's pass or as gradients."""

    def per_token(self, *, checkpointing: bool) -> int:
        """The most that is alive at once: all layers, or all layers' inputs and one layer computed again."""
        kept = self.layers * self.layer_input + self.layer if checkpointing else self.layers * self.layer
        return kept + self.ends + self.transient


def estimate_activations(stack: Stack, lora: LoraConfig) -> Activations:
    """Read the widths off a stack with a Llama body."""
    config = stack.llm.model.config
    d, f, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    q = heads * config.head_dim
    adapted = 5 * d + q + f
    mask = adapted if lora.dropout else 0
    return Activations(
        layers=config.num_hidden_layers,
        layer=8 * d + 2 * adapted + 14 * lora.rank + 8 * q + 4 * heads + 6 * f + mask,
        layer_input=2 * d,
        ends=2 * stack.bridge.weight.shape[1] + 4 * d,
        transient=2 * (4 * d + 3 * f),
    )


class Plan(NamedTuple):
    """How a step's batch is spread over devices."""

    gpus: int
    texts: int
    """On one device at a time."""
    accumulation: int
    """Passes before an update."""
    hours: float


def plan_devices(
    device: Device, *, fixed_bytes: int, bytes_per_text: int, batch_size: int, flops: float, mfu: float
) -> list[Plan]:
    """Spread a step over 1, 2, 4 and 8 devices.

    Args:
        device: The kind.
        fixed_bytes: Memory that every device needs whatever it reads.
        bytes_per_text: Memory for each text of its pass.
        batch_size: Texts in a step, over all devices.
        flops: Operations of the whole run.
        mfu: Fraction of the peak that is reached; what is computed again counts as work.

    Returns:
        Nothing where not one text fits.
    """
    fitting = int(((1 - _RESERVE) * device.gib * 2**30 - fixed_bytes) // bytes_per_text)
    if fitting < 1:
        return []
    plans = []
    for gpus in (1, 2, 4, 8):
        share = max(1, batch_size // gpus)
        texts = max(size for size in range(1, min(fitting, share) + 1) if share % size == 0)
        plans.append(Plan(gpus, texts, share // texts, flops / (gpus * device.flops * mfu) / 3600))
    return plans


def bundle_bytes(stack: Stack) -> dict[str, int]:
    """Sizes of the exported parts without the few kilobytes of their headers.

    The encoder as CTranslate2 keeps it in int8: a byte per weight and a float32 scale per row, all else in float32. The
    body as llama.cpp keeps it: blocks of 32 weights, norms in float32. Adapters are merged, the vocabulary is a stub.
    """
    encoder: Any = stack.encoder
    positions = (encoder.config.max_position_embeddings + 2) * encoder.config.d_model * 4
    matrices = [tensor for tensor in encoder.parameters() if tensor.ndim == 2]
    vectors = [tensor for tensor in encoder.parameters() if tensor.ndim == 1]
    sizes = {
        "encoder_int8": sum(w.numel() + 4 * w.shape[0] for w in matrices) + 4 * _numel(vectors) + positions,
        "bridge": 4 * _numel(stack.bridge.parameters()),
    }
    parameters = count_parameters(stack)
    stored = parameters.llm_matrices + STUB_ROWS * stack.llm.width
    for name, kind in (("q8_0", gguf.GGMLQuantizationType.Q8_0), ("q4_0", gguf.GGMLQuantizationType.Q4_0)):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        sizes[f"llm_{name}"] = stored // block * size + 4 * parameters.llm_norms
        sizes[f"bundle_{name}"] = sizes["encoder_int8"] + sizes["bridge"] + sizes[f"llm_{name}"]
    return sizes


def _numel(tensors: Iterable[nn.Parameter]) -> int:
    return sum(tensor.numel() for tensor in tensors)
