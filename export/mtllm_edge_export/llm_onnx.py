"""The LLM body as an ONNX file: embeddings and a mask in, token states out, adapters merged.

torch traces transformers' own decoder, so the graph is what training ran. Padding stands on the right. What torch
leaves in the file beside the graph (stack traces with the exporter's folders) is taken out, and matrices get the names
that they have in transformers, by which the quality gate speaks of them.
"""

from __future__ import annotations

import ast
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from mtllm_edge.errors import ModelError
from mtllm_edge.formats.onnx import LLM_INPUTS, LLM_MASK, LLM_STATES
from mtllm_edge.manifest import Llm, OnnxQuantization
from mtllm_edge_export.llm_gguf import LlmBody, LlmSummary
from mtllm_edge_export.llm_shape import LlmShape
from mtllm_edge_export.lora import check_lora, merge_lora
from mtllm_edge_export.quantize_onnx import quantize_within_gate

Array = NDArray[np.float32]

MAX_BYTES = 1_600_000_000
"""Most bytes of float32 weights. An ONNX file ends at 2 GiB (external data would be a second file to trust), and while
int8 is measured both forms are in one."""
_OPSET = 18
"""Old enough for every ONNX Runtime that the extra [onnx] allows; nothing newer would be used."""
_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPER = "decoder."
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a vocabulary that is not there


def check_size(body: LlmBody) -> None:
    """Refuse an LLM of another family than Llama, or one that is too large for one ONNX file.

    Raises:
        ModelError: It is.
    """
    shape = LlmShape.read(body.weights.config, body.layers)
    if body.weights.config.get("model_type", "llama") != "llama":
        raise ModelError(f"ONNX takes LLMs of the family llama, this is {body.weights.config['model_type']}; use GGUF")
    size = 4 * sum(math.prod(dimensions) for _, _, dimensions in shape.tensors())
    if size > MAX_BYTES:
        raise ModelError(
            f"the LLM body has {size / 1e9:.1f} GB in float32, ONNX takes {MAX_BYTES / 1e9:.1f} GB at most; "
            "GGUF is the form for large LLMs: export with --llm-backend gguf"
        )


def write_onnx(path: Path, body: LlmBody, quantization: OnnxQuantization, calibration: Sequence[Array]) -> LlmSummary:
    """Write an ONNX file.

    Args:
        path: The file to write.
        body: Weights, depth, attention and adapter.
        quantization: ``int8`` leaves the matrices in float32 that the quality gate wants so.
        calibration: LLM inputs of real texts, each (length, n_embd), on which int8 is compared with float32.

    Raises:
        ModelError: It is too large, a tensor is missing, the adapter does not fit, the model has parts that cannot be
            exported, int8 cannot follow float32, or this torch traces the model in another way.
    """
    check_size(body)
    shape = LlmShape.read(body.weights.config, body.layers)
    matrices = [name.removesuffix(".weight") for _, name, dimensions in shape.tensors() if len(dimensions) == 2]
    model, kept = _traced(_decoder(body, shape), shape.n_embd, causal=body.attention == "causal"), tuple[str, ...]()
    types = {"f32": len(matrices)}
    named = {node.name for node in model.graph.node}
    if absent := [name for name in matrices if name not in named]:
        raise ModelError(
            f"{len(absent)} of the LLM's {len(matrices)} matrices are not in torch's graph, the first is {absent[0]}; "
            "upgrade torch and onnxscript"
        )
    if quantization == "int8":
        model, kept = quantize_within_gate(model, matrices, calibration)
        types = {"int8": len(matrices) - len(kept)} | ({"f32": len(kept)} if kept else {})
    _strip(model)
    onnx.save(model, path)
    return LlmSummary("llama", shape.n_embd, shape.n_layer, types, kept)


def add_onnx(folder: Path, body: LlmBody, gguf: Llm, calibration: Sequence[Array], log: Callable[[str], None]) -> Llm:
    """Write a bundle's second form of its LLM, in int8.

    Args:
        folder: The bundle.
        body: What `gguf` was written from.
        gguf: The first form.
        calibration: As for `write_onnx`.
        log: Told what is done.

    Raises:
        ModelError: As `write_onnx`.
    """
    log("writing the LLM for ONNX Runtime, too (int8)")
    onnx_form = msgspec.structs.replace(gguf, backend="onnx", quantization="int8")
    written = write_onnx(folder / onnx_form.file, body, "int8", calibration)
    tell_matrices(written, log)
    return msgspec.structs.replace(
        onnx_form, architecture=written.architecture, float32_matrices=written.float32_matrices
    )


def tell_matrices(written: LlmSummary, log: Callable[[str], None]) -> None:
    """Say in which types an LLM was written."""
    log("matrices of the LLM: " + ", ".join(f"{count} {kind}" for kind, count in written.matrix_types.items()))
    if written.float32_matrices:
        log(f"in float32, for the vectors' sake: {', '.join(written.float32_matrices)}")


def _decoder(body: LlmBody, shape: LlmShape) -> nn.Module:
    """The decoder of transformers in float32, adapter merged, without a vocabulary."""
    check_lora(body.lora, {name: dimensions for _, name, dimensions in shape.tensors() if len(dimensions) == 2})
    settings = {"num_hidden_layers": shape.n_layer, "vocab_size": 1} | dict.fromkeys(_TOKENS)
    config = transformers.LlamaConfig(**{**body.weights.config, **settings})
    config._attn_implementation = "eager"  # plain products and a softmax, which every ONNX Runtime has
    model: Any = transformers.LlamaModel(config).float()
    state = {"embed_tokens.weight": torch.zeros(1, shape.n_embd)}
    for _, name, dimensions in shape.tensors():
        weight = body.weights.tensor(name)
        if weight.shape != dimensions:
            raise ModelError(f"the LLM's {name} has shape {weight.shape}, its configuration says {dimensions}")
        merged = merge_lora(weight, body.lora, name.removesuffix(".weight"), body.lora_scale)
        state[name] = torch.from_numpy(np.array(merged, np.float32))
    model.load_state_dict(state)
    decoder: nn.Module = model.eval().requires_grad_(False)
    return decoder


class _PaddedDecoder(nn.Module):
    """The decoder over a batch that is padded on the right, with the attention spelled out as one additive mask."""

    def __init__(self, decoder: nn.Module, *, causal: bool) -> None:
        super().__init__()
        self.decoder, self._causal = decoder, causal

    def forward(self, inputs_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        """Final-normed states (N, L, D); those of padding mean nothing."""
        seen = (mask_NL != 0)[:, None, None, :]
        if self._causal:
            place_L = torch.arange(inputs_NLD.shape[1])
            seen = seen & (place_L[None, :] <= place_L[:, None])
        added = torch.where(seen, 0.0, torch.finfo(torch.float32).min).expand(-1, 1, inputs_NLD.shape[1], -1)
        states: Tensor = self.decoder(inputs_embeds=inputs_NLD, attention_mask=added, use_cache=False).last_hidden_state
        return states


def _traced(decoder: nn.Module, width: int, *, causal: bool) -> onnx.ModelProto:
    example = (torch.zeros(2, 5, width), torch.ones(2, 5, dtype=torch.int64))
    free = {0: torch.export.Dim("texts"), 1: torch.export.Dim("length")}
    with _silence():
        program: Any = torch.onnx.export(
            _PaddedDecoder(decoder, causal=causal).eval(),
            example,
            dynamo=True,
            opset_version=_OPSET,
            input_names=[LLM_INPUTS, LLM_MASK],
            output_names=[LLM_STATES],
            dynamic_shapes=(free, free),
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    _name_matrices(model.graph)
    return model


def _name_matrices(graph: onnx.GraphProto) -> None:
    """Give matrices and their products transformers' names; torch numbers them."""
    names = {tensor.name: tensor.name.removeprefix(_WRAPPER) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in names:
            written = {entry.key: entry.value for entry in node.metadata_props}.get(_NAME_SCOPES, "['', '']")
            scopes: list[str] = ast.literal_eval(written)  # ['', 'decoder', ..., MODULE, 'linear_3']
            module = scopes[-2]
            node.name = module.removeprefix(_WRAPPER)
            names[node.input[1]] = f"{node.name}.weight"
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _strip(model: onnx.ModelProto) -> None:
    """Take out what only a debugger reads."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")


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
