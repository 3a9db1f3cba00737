"""An ONNX LLM or encoder in int8, with as many matrices left in float32 as its vectors need.

ONNX Runtime's dynamic quantisation rounds what a matrix reads with one scale for the whole batch. LLMs have a few huge
activations (Sun et al. 2024, arXiv 2402.17762), and a matrix that reads one of them loses the rest. So int8 is measured
on real inputs, and where the vectors turn too far, the matrices that turn them most stay in float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from mtllm_edge.backends.cpu import default_threads, disable_telemetry
from mtllm_edge.backends.onnx_session import padded, session_options
from mtllm_edge.bundle.formats.onnx import STATES
from mtllm_edge.bundle.manifest import Parity
from mtllm_edge.errors import ModelError
from mtllm_edge.tokenization.batching import TOKENS_PER_BATCH, plan_batches
from mtllm_edge_export.parity import measure

disable_telemetry()
from onnxruntime import InferenceSession  # noqa: E402
from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: E402

Array = NDArray[np.float32]

_FLOAT32 = {"LLM": "--llm-quantization f32", "encoder": "--encoder-quantization float32"}
_RANKED_ON = 16
"""Inputs on which groups of matrices are compared; the gate sees all."""
_TRIALS = 64
"""Groups that are compared; more tell better what must stay in float32, and take longer."""


@dataclass(frozen=True)
class QualityGate:
    """On what int8 is compared with float32, and what it must reach."""

    part: Literal["LLM", "encoder"]
    inputs: str
    """Name of the graph's input beside the mask."""
    texts: Sequence[NDArray[Any]]
    """What it reads of real texts, (length, ...) each."""
    rows: Callable[[list[Array]], Array]
    """What is compared of the states of some texts, (length, D) each: rows (V, D)."""
    cosine_mean: float
    cosine_min: float

    def holds(self, parity: Parity) -> bool:
        """Whether int8 is good enough."""
        return parity.cosine_mean >= self.cosine_mean and parity.cosine_min >= self.cosine_min


def quantize_within_tolerance(
    full: onnx.ModelProto, matrices: Sequence[str], trial: QualityGate
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Quantise matrices, but for those without which the gate does not hold.

    If all of them in int8 do not pass, as many as it takes stay in float32, the worst first (see `_worst_first`).

    Args:
        full: The model in float32; the product of a matrix bears its name.
        matrices: Their names.
        trial: The gate.

    Returns:
        The int8 model, and the matrices that stay in float32 in it, in the order of `matrices`.

    Raises:
        ModelError: The gate does not hold with a single matrix in int8.
    """
    session = InferenceSession(
        _switchable(full, _quantized(full, ()), matrices).SerializeToString(),
        session_options(default_threads()),
        providers=["CPUExecutionProvider"],
    )
    exact = _states(session, trial.inputs, trial.texts, matrices, ())

    def compared(in_int8: Collection[str], every: int = 1) -> Parity:
        found = _states(session, trial.inputs, trial.texts[::every], matrices, in_int8)
        return measure(trial.part, trial.rows(exact[::every]), trial.rows(found))

    some = max(1, len(trial.texts) // _RANKED_ON)
    if trial.holds(compared(matrices)):
        return _quantized(full, ()), ()
    worst_first = _worst_first(matrices, lambda group: 1.0 - compared(group, some).cosine_mean)
    # How many of the worst must stay: found by halving, as the vectors come closer with every one that does.
    too_few, enough = 0, len(matrices) - 1
    if not trial.holds(found := compared(worst_first[enough:])):
        raise ModelError(
            f"no matrix of the {trial.part} can be int8: with one, the vectors have a cosine of "
            f"{found.cosine_mean:.4f} on average, {found.cosine_min:.4f} at worst, "
            f"expected {trial.cosine_mean} and {trial.cosine_min}; export it with {_FLOAT32[trial.part]}"
        )
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if trial.holds(compared(worst_first[middle:])):
            enough = middle
        else:
            too_few = middle
    kept = tuple(name for name in matrices if name in worst_first[:enough])
    return _quantized(full, kept), kept


def _worst_first(matrices: Sequence[str], loss: Callable[[Sequence[str]], float]) -> list[str]:
    """Matrices in the order in which they should stay in float32.

    Few matrices lose most, so they are found by halving: neighbours are tried in int8 together, and of the groups the
    one that loses most is divided, as often as `_TRIALS` allows.

    Args:
        matrices: In the order of the model.
        loss: What the vectors lose with a group in int8 and all others in float32.
    """
    groups = [(loss(matrices), matrices)]
    singles: list[tuple[float, Sequence[str]]] = []
    for _ in range(_TRIALS // 2):
        if not groups:
            break
        _, worst = groups.pop(max(range(len(groups)), key=lambda place: groups[place][0]))
        middle = len(worst) // 2
        for half in (worst[:middle], worst[middle:]):
            (groups if len(half) > 1 else singles).append((loss(half), half))
    each = {name: lost / len(group) for lost, group in groups + singles for name in group}
    return sorted(matrices, key=each.__getitem__, reverse=True)


def _quantized(full: onnx.ModelProto, kept: Sequence[str]) -> onnx.ModelProto:
    """All matrices in int8, a scale for each of their outputs, but for those that are kept."""
    with tempfile.TemporaryDirectory() as scratch, _no_advice():
        path = Path(scratch) / "int8.onnx"
        quantize_dynamic(
            full,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # 7 bits: processors without VNNI add two products in 16 bits, where those of 8 bits overflow.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(kept),
        )
        return onnx.load(path)


def _switchable(full: onnx.ModelProto, quantized: onnx.ModelProto, matrices: Sequence[str]) -> onnx.ModelProto:
    """Both forms of every matrix in one graph, and a boolean input of each one's name that says whether it is int8.

    So any mixture is tried without another file or session.
    """
    products = {node.output[0]: node for node in full.graph.node if node.name in set(matrices)}
    nodes = []
    for node in quantized.graph.node:
        nodes.append(node)
        if (output := node.output[0]) in products:
            product = products[output]
            node.output[0], exact = f"{output}.int8", f"{output}.float32"
            nodes.append(helper.make_node("MatMul", product.input, [exact]))
            nodes.append(helper.make_node("Where", [product.name, node.output[0], exact], [output]))
    weights = {product.input[1] for product in products.values()}
    both = onnx.ModelProto()
    both.CopyFrom(quantized)
    both.graph.ClearField("node")
    both.graph.node.extend(nodes)
    both.graph.initializer.extend(tensor for tensor in full.graph.initializer if tensor.name in weights)
    both.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, [1]) for name in matrices)
    return both


def _states(
    session: InferenceSession,
    inputs: str,
    texts: Sequence[NDArray[Any]],
    matrices: Sequence[str],
    in_int8: Collection[str],
) -> list[Array]:
    """States of each text (length, D) from a switchable graph, in batches as the runtime makes them."""
    switches = {name: np.array([name in in_int8]) for name in matrices}
    lengths = [len(text) for text in texts]
    states: dict[int, Array] = {}
    for places in plan_batches(lengths, max_tokens=max(TOKENS_PER_BATCH, *lengths), padded=True):
        (states_NLD,) = session.run([STATES], padded(inputs, [texts[place] for place in places]) | switches)
        states |= {place: states_NLD[row, : lengths[place]] for row, place in enumerate(places)}
    return [states[place] for place in range(len(texts))]


@contextmanager
def _no_advice() -> Iterator[None]:
    """Keep back the quantiser's advice to optimise the graph before, which would rename what the gate names."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
