"""Trace a torch module as an ONNX graph in the runtime's form: inputs and mask to states.

Matrices get their names in transformers, which the manifest lists. Debug information, such as stack traces with local
paths, is removed.
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
"""Supported by every ONNX Runtime that the extra [onnx] allows; later opsets add nothing that is used here."""
_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPER = "body."


class PaddedModule(nn.Module):
    """A model over batches that are padded on the right; subclasses define the forward pass."""

    def __init__(self, body: nn.Module) -> None:
        """Wrap a model; its parameters keep their names, prefixed with `body.`."""
        super().__init__()
        self.body: Any = body


def additive_mask(visible: Tensor) -> Tensor:
    """Return an additive attention mask of the same shape: 0 where visible, the lowest float32 elsewhere."""
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)


def trace(module: PaddedModule, input_name: str, example: Tensor, matrices: Sequence[str]) -> onnx.ModelProto:
    """Return the ONNX graph of a module.

    Args:
        module: Maps inputs (N, L, ...) and mask (N, L) to states (N, L, D).
        input_name: Name of the first input in the graph.
        example: Example of that input; batch size and length are dynamic.
        matrices: Names of the linear layers in transformers; the matrix products get these names.

    Raises:
        ModelError: This torch release traces the model differently.
    """
    dynamic = {0: torch.export.Dim("texts"), 1: torch.export.Dim("length")}
    with quiet_logging():
        program: Any = torch.onnx.export(
            module.eval(),
            (example, torch.ones(example.shape[:2], dtype=torch.int64)),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[input_name, MASK],
            output_names=[STATES],
            dynamic_shapes=(dynamic, dynamic),
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    _name_matrices(model.graph)
    nodes = {node.name for node in model.graph.node}
    if missing := [name for name in matrices if name not in nodes]:
        raise ModelError(
            f"torch's graph lacks {len(missing)} of the model's {len(matrices)} matrices, the first is {missing[0]}; "
            "upgrade torch and onnxscript"
        )
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph without debug information."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    onnx.save(model, path)


def _name_matrices(graph: onnx.GraphProto) -> None:
    """Rename matrices and their products, which torch numbers, to their names in transformers."""
    names = {tensor.name: tensor.name.removeprefix(_WRAPPER) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in names:
            scopes_text = {entry.key: entry.value for entry in node.metadata_props}.get(_NAME_SCOPES, "['', '']")
            scopes: list[str] = ast.literal_eval(scopes_text)  # ['', 'body', ..., MODULE, 'linear_3']
            module = scopes[-2]
            node.name = module.removeprefix(_WRAPPER)
            names[node.input[1]] = f"{node.name}.weight"
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Suppress warnings and log lines of the exporter and the quantizer, which concern their internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
