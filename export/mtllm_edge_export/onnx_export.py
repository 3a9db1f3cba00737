"""A torch module as an ONNX graph that the runtime accepts: inputs and a mask in, states out.

What torch leaves in the file beside the graph (stack traces with the exporter's folders) is taken out, and matrices get
the names that they have in transformers, by which the quality gate speaks of them.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mtllm_edge.bundle.formats.onnx import MASK, STATES
from mtllm_edge.errors import ModelError

_OPSET = 18
"""Old enough for every ONNX Runtime that the extra [onnx] allows; nothing newer would be used."""
_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPER = "body."


class PaddedModule(nn.Module):
    """A model over a batch that is padded on the right; subclasses say how it is called."""

    def __init__(self, body: nn.Module) -> None:
        """Take the model; its parameters keep their names, after `body`."""
        super().__init__()
        self.body: Any = body


def additive_mask(seen: Tensor) -> Tensor:
    """Attention as one additive mask, 0 where something is seen, in whatever shape."""
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def trace(wrapper: PaddedModule, inputs: str, example: Tensor, matrices: Sequence[str]) -> onnx.ModelProto:
    """The graph of a wrapped model.

    Args:
        wrapper: Maps inputs (N, L, ...) and mask (N, L) to states (N, L, D).
        inputs: Name of the first input in the graph.
        example: Some of it; batch and length are free.
        matrices: The names that its linear layers have in transformers; their products get these names.

    Raises:
        ModelError: This torch traces the model in another way.
    """
    free = {0: torch.export.Dim("texts"), 1: torch.export.Dim("length")}
    with _silence():
        program: Any = torch.onnx.export(
            wrapper.eval(),
            (example, torch.ones(example.shape[:2], dtype=torch.int64)),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[inputs, MASK],
            output_names=[STATES],
            dynamic_shapes=(free, free),
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    _name_matrices(model.graph)
    named = {node.name for node in model.graph.node}
    if absent := [name for name in matrices if name not in named]:
        raise ModelError(
            f"{len(absent)} of the model's {len(matrices)} matrices are not in torch's graph, the first is "
            f"{absent[0]}; upgrade torch and onnxscript"
        )
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph without what only a debugger reads."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    onnx.save(model, path)


def _name_matrices(graph: onnx.GraphProto) -> None:
    """Give matrices and their products transformers' names; torch numbers them."""
    names = {tensor.name: tensor.name.removeprefix(_WRAPPER) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in names:
            written = {entry.key: entry.value for entry in node.metadata_props}.get(_NAME_SCOPES, "['', '']")
            scopes: list[str] = ast.literal_eval(written)  # ['', 'body', ..., MODULE, 'linear_3']
            module = scopes[-2]
            node.name = module.removeprefix(_WRAPPER)
            names[node.input[1]] = f"{node.name}.weight"
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back the exporter's warnings: of its own internals, and of packages that are not needed here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
