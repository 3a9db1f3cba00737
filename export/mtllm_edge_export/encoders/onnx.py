"""The translation encoder as an ONNX file: token ids and mask to last hidden states.

torch traces the encoder of transformers, so one code path serves every family. Padding is on the right, so that it does
not shift positions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mtllm_edge.bundle.formats.onnx import ENCODER_IDS, WORD_EMBEDDINGS
from mtllm_edge.errors import ModelError
from mtllm_edge_export.onnx_export import PaddedModule, additive_mask, save, trace
from mtllm_edge_export.quantization.onnx import QualityGate, quantize_within_tolerance

if TYPE_CHECKING:
    from mtllm_edge_export.encoders.spec import EncoderQuantization
    from mtllm_edge_train.models.encoder import LoadedEncoder

MAX_BYTES = 2_000_000_000
"""Limit of an ONNX file in bytes, which is at most 2 GiB (external data would be a second file to verify)."""
GATE_COSINE_MEAN = 0.995
"""Required mean cosine of token states in int8 with those in float32."""
GATE_COSINE_MIN = 0.9
"""Required lowest cosine."""


def write_encoder_onnx(
    path: Path, encoder: LoadedEncoder, quantization: EncoderQuantization, calibration: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    """Write an ONNX file that maps token ids to the encoder's last hidden states.

    ``int8`` stores the word embeddings in 8 bits with a scale per row, and keeps matrices in float32 where the states
    of `calibration`, token ids of real texts, would change too much.

    Returns:
        The matrices that stay in float32 in an int8 model.

    Raises:
        ModelError: The encoder is too large, int8 differs too much from float32, or this torch release traces the
            model differently.
    """
    _check_size(encoder, quantization)
    body: Any = copy.deepcopy(encoder.module).requires_grad_(False)
    body.config._attn_implementation = "eager"  # plain products and a softmax, which every ONNX Runtime supports
    matrices = [name for name, module in body.named_modules() if isinstance(module, nn.Linear)]
    model = trace(_Encoder(body), ENCODER_IDS, torch.zeros(2, 5, dtype=torch.int64), matrices)
    _name_word_embeddings(model.graph)
    float32_matrices: tuple[str, ...] = ()
    if quantization == "int8":
        _quantize_word_embeddings(model.graph)
        texts = [np.array(ids, np.int64) for ids in calibration]
        gate = QualityGate("encoder", ENCODER_IDS, texts, np.concatenate, GATE_COSINE_MEAN, GATE_COSINE_MIN)
        model, float32_matrices = quantize_within_tolerance(model, matrices, gate)
    save(model, path)
    return float32_matrices


class _Encoder(PaddedModule):
    """The encoder, with one additive attention mask."""

    def forward(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Return the last hidden states (N, L, D); those of padding are undefined."""
        mask = additive_mask(mask_NL != 0)[:, None, None, :].expand(-1, 1, ids_NL.shape[1], -1)
        states: Tensor = self.body(input_ids=ids_NL, attention_mask=mask).last_hidden_state
        return states


def _check_size(encoder: LoadedEncoder, quantization: EncoderQuantization) -> None:
    table = encoder.word_embeddings.size
    rest = sum(parameter.numel() for parameter in encoder.module.parameters()) - table
    # The int8 search holds the matrices in float32 and int8.
    size = 4 * (table + rest) if quantization == "float32" else table + 5 * rest
    if size > MAX_BYTES:
        raise ModelError(
            f"the encoder takes {size / 1e9:.1f} GB, ONNX supports up to {MAX_BYTES / 1e9:.1f} GB; "
            "export with --encoder-backend ctranslate2"
        )


def _name_word_embeddings(graph: onnx.GraphProto) -> None:
    """Rename the word embeddings to the name from which the runtime reads the vocabulary size."""
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[1] == ENCODER_IDS]
    tables = [tensor for tensor in graph.initializer if lookups and tensor.name == lookups[0].input[0]]
    if len(lookups) != 1 or not tables:
        raise ModelError(
            f"torch's graph has {len(lookups)} embedding lookups of the token ids, expected 1; use another encoder"
        )
    lookups[0].input[0] = tables[0].name = WORD_EMBEDDINGS


def _quantize_word_embeddings(graph: onnx.GraphProto) -> None:
    """Store the word embeddings in 8 bits with a scale per row: 127 is the largest absolute value of a row."""
    table = next(tensor for tensor in graph.initializer if tensor.name == WORD_EMBEDDINGS)
    table_VD: NDArray[np.float32] = numpy_helper.to_array(table)
    scales_V1 = np.maximum(np.abs(table_VD).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(127)
    table.CopyFrom(numpy_helper.from_array(np.rint(table_VD / scales_V1).astype(np.int8), WORD_EMBEDDINGS))
    graph.initializer.append(numpy_helper.from_array(scales_V1, f"{WORD_EMBEDDINGS}.scales"))
    position = next(index for index, node in enumerate(graph.node) if WORD_EMBEDDINGS in node.input)
    lookup = graph.node[position]
    rows, numbers, scales = (f"{lookup.output[0]}.{name}" for name in ("int8", "float32", "scales"))
    nodes = [
        helper.make_node("Gather", [WORD_EMBEDDINGS, ENCODER_IDS], [rows], axis=0),
        helper.make_node("Cast", [rows], [numbers], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{WORD_EMBEDDINGS}.scales", ENCODER_IDS], [scales], axis=0),
        helper.make_node("Mul", [numbers, scales], [lookup.output[0]]),
    ]
    before, after = list(graph.node[:position]), list(graph.node[position + 1 :])
    graph.ClearField("node")
    graph.node.extend([*before, *nodes, *after])
