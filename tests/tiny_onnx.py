"""Hand-made ONNX files with the inputs and outputs of an LLM body and of an encoder, in a bundle of `tests.tiny`.

Their one "layer" is a causal sum over the text so far, which padding on the right does not reach, and a matrix. The
encoder looks a table up before. No torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mtllm_edge.bundle import list_files
from mtllm_edge.formats.onnx import ENCODER_IDS, LLM_INPUTS, MASK, STATES, WORD_EMBEDDINGS
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


def table(rows: int, width: int = tiny.D_MODEL) -> NDArray[np.float32]:
    """The encoder's word embeddings, (rows, width)."""
    return np.random.default_rng(8).standard_normal((rows, width), dtype=np.float32)


def make_encoder(rows: int = 300, width: int = tiny.D_MODEL) -> onnx.ModelProto:
    """States of ids: the sum of their embeddings up to each, times the matrix."""
    model = make_model(width)
    graph = model.graph
    graph.input[0].CopyFrom(helper.make_tensor_value_info(ENCODER_IDS, TensorProto.INT64, ["texts", "length"]))
    graph.initializer.append(numpy_helper.from_array(table(rows, width), WORD_EMBEDDINGS))
    lookup = helper.make_node("Gather", [WORD_EMBEDDINGS, ENCODER_IDS], ["rows"])
    nodes = [lookup, *graph.node]
    for node in nodes:
        node.input[:] = ["rows" if name == LLM_INPUTS else name for name in node.input]
    graph.ClearField("node")
    graph.node.extend(nodes)
    return model


def make_onnx_encoder_bundle(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    """Give a bundle of `tests.tiny` this encoder instead of its own."""
    shutil.rmtree(folder / "encoder", ignore_errors=True)
    onnx.save(model or make_encoder(), folder / "encoder.onnx")
    path = folder / "bundle.json"
    content = msgspec.json.decode(path.read_bytes())
    content["encoder"] |= {"backend": "onnx"}
    content["files"] = msgspec.to_builtins(list_files(folder))
    path.write_bytes(msgspec.json.encode(content))
    return folder


def add_onnx_form(folder: Path) -> Path:
    """Give a bundle of `tests.tiny` an ONNX form beside its GGUF; what it computes is something else."""
    onnx.save(make_model(layers=tiny.N_LAYER), folder / "llm.onnx")
    path = folder / "bundle.json"
    content = msgspec.json.decode(path.read_bytes())
    content["llm_onnx"] = content["llm"] | {"backend": "onnx"}
    content["files"] = msgspec.to_builtins(list_files(folder))
    path.write_bytes(msgspec.json.encode(content))
    return folder
