"""Quantize an ONNX LLM or encoder to int8, keeping in float32 the matrices that its vectors depend on most.

Dynamic quantization in ONNX Runtime rounds the inputs of a matrix with one scale per batch. LLMs have a few massive
activations (Sun et al. 2024, arXiv 2402.17762), and a matrix that reads one of them loses the other inputs. So int8 is
compared with float32 on real inputs, and where the cosine is too low, the matrices with the largest effect stay in
float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from mtllm_edge.backends.cpu import default_threads, disable_telemetry
from mtllm_edge.backends.onnx_session import pad, session_options
from mtllm_edge.bundle.formats.onnx import STATES
from mtllm_edge.bundle.manifest import Parity
from mtllm_edge.errors import ModelError
from mtllm_edge.tokenization.batching import TOKENS_PER_BATCH, plan_batches
from mtllm_edge_export.onnx_export import quiet_logging
from mtllm_edge_export.parity import compare_vectors

disable_telemetry()
from onnxruntime import InferenceSession  # noqa: E402
from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: E402

Array = NDArray[np.float32]

_FLOAT32 = {"LLM": "--llm-quantization f32", "encoder": "--encoder-quantization float32"}
_RANKING_TEXTS = 16
"""Number of texts for the ranking of matrices; the quality gate uses all."""
_TRIALS = 64
"""Number of groups of matrices to compare; more give a better ranking, and take longer."""


@dataclass(frozen=True)
class QualityGate:
    """Inputs to compare int8 with float32 on, and the required cosines."""

    part: Literal["LLM", "encoder"]
    input_name: str
    """Name of the graph's input beside the mask."""
    texts: Sequence[NDArray[Any]]
    """Inputs of real texts, (length, ...) each."""
    vectors: Callable[[list[Array]], Array]
    """Maps the states of texts, (length, D) each, to the vectors to compare, (V, D)."""
    cosine_mean: float
    cosine_min: float

    def passes(self, parity: Parity) -> bool:
        """Return whether the cosines suffice."""
        return parity.cosine_mean >= self.cosine_mean and parity.cosine_min >= self.cosine_min


def quantize_within_tolerance(
    model: onnx.ModelProto, matrices: Sequence[str], gate: QualityGate
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Quantize a model, keeping as few matrices in float32 as the quality gate requires.

    A matrix product in the model has the name of its matrix.

    Returns:
        The int8 model, and the names of the matrices that stay in float32, in the order of `matrices`.

    Raises:
        ModelError: The gate fails even with a single matrix in int8.
    """
    session = InferenceSession(
        _switchable(model, _quantize(model, ()), matrices).SerializeToString(),
        session_options(default_threads()),
        providers=["CPUExecutionProvider"],
    )
    float32_states = _states(session, gate, matrices, ())

    def compare(int8: Collection[str], every: int = 1) -> Parity:
        states = _states(session, gate, matrices, int8, every)
        return compare_vectors(gate.part, gate.vectors(float32_states[::every]), gate.vectors(states))

    if gate.passes(compare(matrices)):
        return _quantize(model, ()), ()
    every = max(1, len(gate.texts) // _RANKING_TEXTS)
    ranking = _rank_by_loss(matrices, lambda group: 1.0 - compare(group, every).cosine_mean)
    # Binary search for the number of matrices in float32: the cosine rises with every one.
    too_few, enough = 0, len(matrices) - 1
    parity = compare(ranking[enough:])
    if not gate.passes(parity):
        raise ModelError(
            f"no matrix of the {gate.part} can be int8: with one, the vectors have a cosine of "
            f"{parity.cosine_mean:.4f} on average, {parity.cosine_min:.4f} at worst, "
            f"expected {gate.cosine_mean} and {gate.cosine_min}; export it with {_FLOAT32[gate.part]}"
        )
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if gate.passes(compare(ranking[middle:])):
            enough = middle
        else:
            too_few = middle
    float32_matrices = tuple(name for name in matrices if name in ranking[:enough])
    return _quantize(model, float32_matrices), float32_matrices


def _rank_by_loss(matrices: Sequence[str], loss: Callable[[Sequence[str]], float]) -> list[str]:
    """Rank matrices by their loss in int8, largest first.

    Few matrices cause most of the loss, so they are found by bisection: groups of neighbors are quantized together, and
    the group with the largest loss is divided, as often as `_TRIALS` allows.
    """
    groups = [(loss(matrices), matrices)]
    singles: list[tuple[float, Sequence[str]]] = []
    for _ in range(_TRIALS // 2):
        if not groups:
            break
        _, worst = groups.pop(max(range(len(groups)), key=lambda index: groups[index][0]))
        middle = len(worst) // 2
        for half in (worst[:middle], worst[middle:]):
            (groups if len(half) > 1 else singles).append((loss(half), half))
    losses = {name: group_loss / len(group) for group_loss, group in groups + singles for name in group}
    return sorted(matrices, key=losses.__getitem__, reverse=True)


def _quantize(model: onnx.ModelProto, float32_matrices: Sequence[str]) -> onnx.ModelProto:
    """Quantize all other matrices to int8, with a scale per output."""
    # Quiet: the quantizer advises to optimize the graph first, which would rename the matrices.
    with tempfile.TemporaryDirectory() as folder, quiet_logging():
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # 7 bits: processors without VNNI add two products in 16 bits, where 8-bit products overflow.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(float32_matrices),
        )
        return onnx.load(path)


def _switchable(model: onnx.ModelProto, quantized: onnx.ModelProto, matrices: Sequence[str]) -> onnx.ModelProto:
    """Merge both models: a boolean input with the name of each matrix selects int8.

    Any mixture can then be tried in one session.
    """
    products = {node.output[0]: node for node in model.graph.node if node.name in set(matrices)}
    nodes = []
    for node in quantized.graph.node:
        nodes.append(node)
        if (output := node.output[0]) in products:
            product = products[output]
            node.output[0], float32 = f"{output}.int8", f"{output}.float32"
            nodes.append(helper.make_node("MatMul", product.input, [float32]))
            nodes.append(helper.make_node("Where", [product.name, node.output[0], float32], [output]))
    weights = {product.input[1] for product in products.values()}
    merged = onnx.ModelProto()
    merged.CopyFrom(quantized)
    merged.graph.ClearField("node")
    merged.graph.node.extend(nodes)
    merged.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in weights)
    merged.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, [1]) for name in matrices)
    return merged


def _states(
    session: InferenceSession, gate: QualityGate, matrices: Sequence[str], int8: Collection[str], every: int = 1
) -> list[Array]:
    """Run a switchable graph on every n-th text, batched as in the runtime; returns states (length, D) of each text."""
    texts = gate.texts[::every]
    switches = {name: np.array([name in int8]) for name in matrices}
    lengths = [len(text) for text in texts]
    states: dict[int, Array] = {}
    for batch in plan_batches(lengths, max_tokens=max(TOKENS_PER_BATCH, *lengths), padded=True):
        inputs = pad(gate.input_name, [texts[index] for index in batch])
        (states_NLD,) = session.run([STATES], inputs | switches)
        states |= {index: states_NLD[row, : lengths[index]] for row, index in enumerate(batch)}
    return [states[index] for index in range(len(texts))]
