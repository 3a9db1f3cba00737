"""Structure of an ONNX file (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), without the weights.

A file is one protobuf message: fields with a number, a wire type (0 for a number, 2 for bytes after their length) and a
value. Only the structure that this project's exporters write is accepted: one flat graph, all tensors in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mtllm_edge.bundle.formats.binary import BinaryReader, DamagedFileError, check_unique, open_binary

LLM_INPUTS, ENCODER_IDS = "inputs_embeds", "input_ids"
"""First input of an LLM, float32 (texts, length, n_embd), and of an encoder, int64 (texts, length)."""
MASK, STATES = "attention_mask", "states"
"""Second input of both, int64 (texts, length), and their output, float32 (texts, length, width)."""
WORD_EMBEDDINGS = "word_embeddings"
"""Tensor of an encoder, (vocabulary, d_model), float32 or int8."""

FLOAT, INT8, INT64 = 1, 3, 7
_ITEM_SIZES = {FLOAT: 4, 2: 1, INT8: 1, 6: 4, INT64: 8, 9: 1, 10: 2, 11: 8, 16: 2}
"""`TensorProto.DataType` -> bytes of an item."""
_NAME_LIMIT = 2**12
_NODE_LIMIT, _TENSOR_LIMIT, _MAX_DIMENSIONS = 2**17, 2**16, 8
_DOMAINS = ("", "ai.onnx")
"""Domains of the standard operators."""
_OPERATORS = frozenset(
    """
    Abs Add And Cast CastLike Clip Concat Constant ConstantOfShape Cos CumSum DequantizeLinear Div
    DynamicQuantizeLinear Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm
    Greater GreaterOrEqual Identity IsInf IsNaN LayerNormalization Less LessOrEqual Log MatMul
    MatMulInteger Max Min Mod Mul Neg Not Or Pad Pow QuantizeLinear RMSNormalization Range Reciprocal
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape RotaryEmbedding
    ScatterElements ScatterND Shape Sigmoid Sign Sin Size Slice Softmax Split Sqrt Squeeze Sub Sum Swish
    Tanh Tile Transpose Trilu Unsqueeze Where
    """.split()  # noqa: SIM905 (a list of them takes 80 lines)
)
"""Allowed operators: no control flow, random numbers, sequences, strings or recurrent layers."""
_IR_VERSIONS = range(3, 11)
"""Versions that the oldest ONNX Runtime of the extra [onnx] reads."""

Shape = tuple[int | str, ...]
"""Lengths, or names of dynamic dimensions."""


@dataclass(frozen=True)
class Graph:
    """Inputs, outputs and stored tensors of an ONNX file."""

    inputs: dict[str, tuple[int, Shape]] = field(default_factory=dict)
    """Name -> type and shape."""
    outputs: dict[str, tuple[int, Shape]] = field(default_factory=dict)
    initializers: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    """Name of each stored tensor -> type and shape."""


def read_graph(path: Path) -> Graph:
    """Read the structure of an ONNX file.

    Raises:
        DamagedFileError: It is cut short, or has tensors outside the file or of a wrong size, operators that are not
            allowed, nested graphs, or functions.
    """
    graph, graphs, versions = Graph(), 0, 0
    with open_binary(path) as reader:
        for number, wire, value in _fields(reader, reader.size):
            match number, wire:
                case 1, _:
                    if wire != 0 or value not in _IR_VERSIONS:
                        raise DamagedFileError(f"IR version {value}, expected {_IR_VERSIONS[0]} to {_IR_VERSIONS[-1]}")
                case 7, 2:
                    graphs += 1
                    _read_graph(reader, value, graph)
                case 8, 2:
                    versions += 1
                    _read_operator_set(reader, value)
                case ((20 | 25), 2):
                    raise DamagedFileError("holds training steps or functions")
    if graphs != 1 or versions == 0:
        raise DamagedFileError(f"no ONNX file: {graphs} graphs and {versions} operator sets, expected 1 and some")
    return graph


def _fields(reader: BinaryReader, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, wire type and value of each field up to `end`; for bytes, the value is the offset of their end.

    The reader is then at their beginning, and continues at their end, however much of them was read.
    """
    while reader.position < end:
        key = _varint(reader)
        number, wire = key >> 3, key & 7
        if key >= 2**32 or number == 0:  # protobuf drops the bits above, and reads another field
            raise DamagedFileError(f"no ONNX file: a field of key {key} before offset {reader.position}")
        if wire == 0:
            yield number, wire, _varint(reader)
        elif wire == 2:
            length = _varint(reader)
            stop = reader.position + length
            if stop > end:
                raise DamagedFileError(f"cut short: {length} bytes expected at offset {reader.position} of {end}")
            yield number, wire, stop
            reader.position = stop
        elif wire in (1, 5):
            reader.skip(8 if wire == 1 else 4)
            yield number, wire, 0
        else:
            raise DamagedFileError(f"no ONNX file: a field of wire type {wire} before offset {reader.position}")
    if reader.position != end:
        raise DamagedFileError(f"a field ends at offset {reader.position}, its message at {end}")


def _varint(reader: BinaryReader) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = reader.read_int("B")
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise DamagedFileError(f"a number of more than 10 bytes before offset {reader.position}")


def _text(reader: BinaryReader, end: int) -> str:
    return reader.read_text(end - reader.position, limit=_NAME_LIMIT)


def _read_operator_set(reader: BinaryReader, end: int) -> None:
    for number, wire, stop in _fields(reader, end):
        if (number, wire) == (1, 2) and (domain := _text(reader, stop)) not in _DOMAINS:
            raise DamagedFileError(f"imports the operators of {domain!r}, which this release does not allow")


def _read_graph(reader: BinaryReader, end: int, graph: Graph) -> None:
    nodes = 0
    for number, wire, stop in _fields(reader, end):
        match number, wire:
            case 1, 2:
                nodes += 1
                _read_node(reader, stop)
            case 5, 2:
                name, kind, shape = _read_tensor(reader, stop)
                check_unique(name, graph.initializers, "tensor")
                graph.initializers[name] = kind, shape
            case ((11 | 12), 2):
                name, kind, free_shape = _read_value(reader, stop)
                values = graph.inputs if number == 11 else graph.outputs
                check_unique(name, values, "tensor")
                values[name] = kind, free_shape
            case 15, 2:
                raise DamagedFileError("holds sparse tensors")
        if nodes > _NODE_LIMIT or len(graph.initializers) > _TENSOR_LIMIT:
            raise DamagedFileError(f"has more than {_NODE_LIMIT} nodes or {_TENSOR_LIMIT} tensors")


def _read_node(reader: BinaryReader, end: int) -> None:
    """Check the operator of a node, and its attributes, which may hold tensors and nested graphs."""
    operator, domain = "", ""
    for number, wire, stop in _fields(reader, end):
        match number, wire:
            case 4, 2:
                operator = _text(reader, stop)
            case 7, 2:
                domain = _text(reader, stop)
            case 5, 2:
                _read_attribute(reader, stop)
    if operator not in _OPERATORS or domain not in _DOMAINS:
        raise DamagedFileError(f"has the operator {f'{domain}.{operator}'.lstrip('.')!r}, which is not allowed")


def _read_attribute(reader: BinaryReader, end: int) -> None:
    for number, wire, stop in _fields(reader, end):
        match number, wire:
            case ((5 | 10), 2):
                _read_tensor(reader, stop)
            case ((6 | 11 | 22 | 23), 2):
                raise DamagedFileError("holds a graph within the graph, or sparse tensors")


def _read_tensor(reader: BinaryReader, end: int) -> tuple[str, int, tuple[int, ...]]:
    """Name, type and shape of a tensor."""
    name, kind, size = "", 0, None
    shape: list[int] = []
    for number, wire, value in _fields(reader, end):
        match number, wire:
            case 1, _:
                if wire != 0 or value >= 2**63:
                    raise DamagedFileError(f"no shape of a tensor before offset {reader.position}")
                shape.append(value)
            case 2, 0:
                kind = value
            case 3, 2:
                raise DamagedFileError(f"tensor {name!r} is a piece of one")
            case 8, 2:
                name = _text(reader, value)
            case 9, 2:
                size = value - reader.position
            case (13, 2) | (14, 0) if number == 13 or value != 0:
                raise DamagedFileError(f"tensor {name!r} is outside the file")
    if len(shape) > _MAX_DIMENSIONS:
        raise DamagedFileError(f"tensor {name!r} has {len(shape)} dimensions, expected {_MAX_DIMENSIONS} at most")
    if size is not None and size != _ITEM_SIZES.get(kind, 0) * math.prod(shape):
        raise DamagedFileError(f"tensor {name!r} has shape {shape} and type {kind}, but {size} bytes")
    return name, kind, tuple(shape)


def _read_value(reader: BinaryReader, end: int) -> tuple[str, int, Shape]:
    """Name, type and shape of an input or output; type 0 if it is no tensor."""
    name, kind = "", 0
    shape: list[int | str] = []
    for number, wire, stop in _fields(reader, end):
        if (number, wire) == (1, 2):
            name = _text(reader, stop)
        elif (number, wire) == (2, 2):
            for tensor_end in _messages(reader, stop, 1):
                for inner, inner_wire, value in _fields(reader, tensor_end):
                    if (inner, inner_wire) == (1, 0):
                        kind = value
                    elif (inner, inner_wire) == (2, 2):
                        shape += [_length(reader, dimension_end) for dimension_end in _messages(reader, value, 1)]
    return name, kind, tuple(shape)


def _messages(reader: BinaryReader, end: int, number: int) -> Iterator[int]:
    """Offset of the end of each message in the field `number`."""
    return (stop for field_number, wire, stop in _fields(reader, end) if (field_number, wire) == (number, 2))


def _length(reader: BinaryReader, end: int) -> int | str:
    length: int | str = ""
    for number, wire, value in _fields(reader, end):
        if (number, wire) == (1, 0):
            length = value
        elif (number, wire) == (2, 2):
            length = _text(reader, value)
    return length
