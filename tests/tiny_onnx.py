"""A hand-made ONNX file with the inputs and outputs of an LLM body, in a bundle of `tests.tiny`. No torch.

Its one "layer" is a causal sum over the text so far, which padding on the right does not reach, and a matrix.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mtllm_edge.bundle import list_files
from mtllm_edge.formats.onnx import LLM_INPUTS, MASK, STATES
from tests import tiny


def matrix(width: int = tiny.N_EMBD) -> NDArray[np.float32]:
    """The matrix, (width, width)."""
    return np.random.default_rng(6).standard_normal((width, width), dtype=np.float32)


def make_model(width: int = tiny.N_EMBD, layers: int = 1) -> onnx.ModelProto:
    """States of inputs: the sum up to each token, times the matrix."""
    rows, tokens = ["texts", "length", width], ["texts", "length"]
    norm = numpy_helper.from_array(np.ones(width, np.float32))
    tensors = {"matrix": numpy_helper.from_array(matrix(width)), "axis": numpy_helper.from_array(np.array(1))}
    tensors |= {f"layers.{layer}.input_layernorm.weight": norm for layer in range(layers)}
    initializers = []
    for name, tensor in tensors.items():
        initializers.append(onnx.TensorProto())
        initializers[-1].CopyFrom(tensor)
        initializers[-1].name = name
    nodes = [
        helper.make_node("Cast", [MASK], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
        helper.make_node("Mul", [LLM_INPUTS, "column"], ["masked"]),
        helper.make_node("CumSum", ["masked", "axis"], ["summed"]),
        helper.make_node("MatMul", ["summed", "matrix"], [STATES], name="matrix"),
    ]
    initializers.append(numpy_helper.from_array(np.array([2]), "last"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(LLM_INPUTS, TensorProto.FLOAT, rows),
            helper.make_tensor_value_info(MASK, TensorProto.INT64, tokens),
        ],
        [helper.make_tensor_value_info(STATES, TensorProto.FLOAT, rows)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def make_onnx_bundle(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    """Give a bundle of `tests.tiny` this LLM instead of its own."""
    (folder / "llm.gguf").unlink(missing_ok=True)
    onnx.save(model or make_model(), folder / "llm.onnx")
    path = folder / "bundle.json"
    content = msgspec.json.decode(path.read_bytes())
    content["llm"] |= {"backend": "onnx", "n_layer": 1}
    content["files"] = msgspec.to_builtins(list_files(folder))
    path.write_bytes(msgspec.json.encode(content))
    return folder
