"""Required inputs, outputs and tensors of the ONNX files of an encoder and an LLM."""

from __future__ import annotations

from mtllm_edge.bundle.formats import onnx
from mtllm_edge.bundle.manifest import EncoderSpec, LlmSpec

_ROWS = (onnx.FLOAT, 3)
"""Type and number of dimensions of states: (texts, length, width)."""


def llm_problems(graph: onnx.Graph, llm: LlmSpec) -> list[str]:
    """Return the differences between the graph of an LLM and the manifest."""
    problems = _value_problems(graph, {onnx.LLM_INPUTS: _ROWS}, llm.n_embd, "LLM")
    if problems:
        return problems
    norms = {name for name in graph.initializers if name.endswith(".input_layernorm.weight")}
    if norms != {f"layers.{layer}.input_layernorm.weight" for layer in range(llm.n_layer)}:
        problems.append(f"has {len(norms)} layers, expected {llm.n_layer}")
    return problems


def encoder_problems(graph: onnx.Graph, encoder: EncoderSpec) -> list[str]:
    """Return the differences between the graph of an encoder and the manifest."""
    problems = _value_problems(graph, {onnx.ENCODER_IDS: (onnx.INT64, 2)}, encoder.d_model, "encoder")
    kind, shape = graph.initializers.get(onnx.WORD_EMBEDDINGS, (0, ()))
    if kind not in (onnx.FLOAT, onnx.INT8) or len(shape) != 2 or shape[1] != encoder.d_model:
        problems.append(f"word embeddings have shape {list(shape)}, expected [vocabulary, {encoder.d_model}]")
    return problems


def _value_problems(graph: onnx.Graph, inputs: dict[str, tuple[int, int]], width: int, part: str) -> list[str]:
    """Compare inputs, beside the mask (name -> type and number of dimensions), outputs and the width of states."""
    expected = ({**inputs, onnx.MASK: (onnx.INT64, 2)}, {onnx.STATES: _ROWS})
    values = tuple(
        {name: (kind, len(shape)) for name, (kind, shape) in side.items()} for side in (graph.inputs, graph.outputs)
    )
    if values != expected:
        return [f"has inputs {', '.join(graph.inputs)} and outputs {', '.join(graph.outputs)}, not those of an {part}"]
    shapes = [shape for kind, shape in (graph.inputs | graph.outputs).values() if (kind, len(shape)) == _ROWS]
    widths = {shape[2] for shape in shapes}
    return [] if widths == {width} else [f"width is {sorted(map(str, widths))}, expected {width}"]
