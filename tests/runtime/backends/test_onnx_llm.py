"""The LLM in ONNX Runtime: padded batches compared with NumPy, and files that must not reach a native parser."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from mtllm_edge import Bundle, Embedder
from mtllm_edge.backends.llms.onnx import OnnxLlm
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.bundle.formats.onnx import FLOAT, INT64, read_graph
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.cli.main import main
from mtllm_edge.errors import EngineError, ModelError, UsageError
from tests.fixtures import tiny_bundle
from tests.fixtures.tiny_onnx import make_model, make_onnx_bundle, matrix
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close

LLM = manifest.LlmSpec(
    backend="onnx",
    architecture="llama",
    n_embd=tiny_bundle.N_EMBD,
    n_layer=1,
    quantization="f32",
    attention="causal",
    pooling="mean",
)


@pytest.fixture
def bundle(fresh_bundle: Path) -> Path:
    return make_onnx_bundle(fresh_bundle)


def inputs(*lengths: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    return [rng.standard_normal((length, tiny_bundle.N_EMBD), dtype=np.float32) for length in lengths]


def test_a_padded_batch_equals_single_texts(bundle: Path) -> None:
    llm = OnnxLlm(bundle / "llm.onnx", LLM, threads=1)
    batch = inputs(3, 40, 1, 7)
    expected_NE = np.stack([(np.cumsum(inputs_LE, axis=0) @ matrix()).mean(axis=0) for inputs_LE in batch])
    assert_vectors_close(llm.pool(batch), expected_NE, FLOAT32)
    assert_vectors_close(np.concatenate([llm.pool([one]) for one in batch]), expected_NE, FLOAT32)
    begin_E, end_E, second_E = llm.pool(batch[:2], [((0, 1), (1, 3)), ()])
    assert_vectors_close((begin_E + 2 * end_E) / 3, expected_NE[0], FLOAT32)
    assert_vectors_close(second_E, expected_NE[1], FLOAT32)
    assert llm.pool([]).shape == (0, tiny_bundle.N_EMBD)
    with pytest.raises(UsageError, match=r"llm\.onnx: an LLM in ONNX has no adapters; .* for 'mine'"):
        llm.pool(batch, adapter="mine")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([np.zeros((3, tiny_bundle.N_EMBD + 1), np.float32)], r"shape \(3, 33\), expected \(1 or more, 32\)"),
        ([*inputs(3), np.zeros((0, tiny_bundle.N_EMBD), np.float32)], r"shape \(0, 32\)"),
        ([np.full((3, tiny_bundle.N_EMBD), np.nan, np.float32)], "the bridge returned numbers that are not finite"),
        ([np.full((3, tiny_bundle.N_EMBD), 3e38, np.float32)], "returned numbers that are not finite"),
    ],
)
def test_invalid_inputs(bundle: Path, batch: list[NDArray[np.float32]], message: str) -> None:
    llm = OnnxLlm(bundle / "llm.onnx", LLM, threads=1)
    with pytest.raises(EngineError, match=message):
        llm.pool(batch)


def test_closed(bundle: Path) -> None:
    llm = OnnxLlm(bundle / "llm.onnx", LLM, threads=1)
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="the LLM is closed"):
        llm.pool(inputs(1))


def test_an_error_of_onnx_runtime_is_one_line(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, bundle / "llm.onnx")
    with pytest.raises(EngineError, match=r"llm\.onnx: ONNX Runtime cannot load it \(.*NoSuchOperator") as caught:
        OnnxLlm(bundle / "llm.onnx", LLM, threads=1)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_the_pipeline_and_the_commands(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["the team is good", "a", "the match is bad " * 8]
    with Embedder.load(bundle, threads=1) as embedder:
        together_NE = embedder.embed(texts)
        singly_NE = np.concatenate([embedder.embed([text]) for text in texts])
    assert_vectors_close(together_NE, singly_NE, FLOAT32)
    assert main(["info", str(bundle)]) == 0
    assert "llama, 1 layers, 32 wide, causal attention, mean pooling, f32 ONNX" in capsys.readouterr().out
    assert main(["doctor", str(bundle), "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert report["engines"]["onnxruntime"]["version"]
    assert report["bundle"] == {"bundle": str(bundle)}


def test_without_the_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'mtllm-edge\[onnx\]'"):
        Embedder.load(bundle)
    assert main(["doctor", str(bundle)]) == 1
    assert "onnxruntime is not installed" in capsys.readouterr().err
    assert main(["doctor"]) == 0  # no bundle requires it


def test_the_structure_of_a_graph(bundle: Path) -> None:
    graph = read_graph(bundle / "llm.onnx")
    rows = (FLOAT, ("texts", "length", tiny_bundle.N_EMBD))
    assert graph.inputs == {"inputs_embeds": rows, "attention_mask": (INT64, ("texts", "length"))}
    assert graph.outputs == {"states": rows}
    assert graph.initializers["matrix"] == (FLOAT, (tiny_bundle.N_EMBD, tiny_bundle.N_EMBD))


def test_every_truncation_is_detected(bundle: Path, tmp_path: Path) -> None:
    content = (bundle / "llm.onnx").read_bytes()
    for length in [*range(400), *range(400, len(content), 61), len(content) - 1]:
        (tmp_path / "cut.onnx").write_bytes(content[:length])
        with pytest.raises(DamagedFileError):
            read_graph(tmp_path / "cut.onnx")


def _external(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../secret")
    model.graph.initializer[0].ClearField("raw_data")


def _external_constant(model: onnx.ModelProto) -> None:
    tensor = onnx.TensorProto(name="far", data_type=FLOAT, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["far"], value=tensor))


def _short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"1234"


def _nested(model: onnx.ModelProto) -> None:
    body = onnx.helper.make_graph([], "inner", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body))


def _function(model: onnx.ModelProto) -> None:
    model.functions.add().name = "own"


def _wide(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 64


def _renamed(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "input_ids"


def _new(model: onnx.ModelProto) -> None:
    model.ir_version = 99


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (_external, "tensor 'matrix' is outside the file"),
        (_external_constant, "tensor 'far' is outside the file"),
        (_short, "tensor 'matrix' has shape [32, 32] and type 1, but 4 bytes"),
        (_nested, "holds a graph within the graph"),
        (_function, "holds training steps or functions"),
        (_wide, "width is ['32', '64'], expected 32"),
        (_renamed, "has inputs input_ids, attention_mask and outputs states, not those of an LLM"),
        (_new, "IR version 99, expected 3 to 10"),
        (lambda model: model.CopyFrom(make_model(layers=2)), "has 2 layers, expected 1"),
    ],
)
def test_invalid_graphs_do_not_reach_onnx_runtime(
    fresh_bundle: Path, change: Callable[[onnx.ModelProto], None], fragment: str
) -> None:
    model = make_model()
    change(model)
    make_onnx_bundle(fresh_bundle, model)
    with pytest.raises(ModelError) as caught:
        Bundle.open(fresh_bundle)
    assert f"llm.onnx: {fragment}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"quantization": "q8_0"}, "onnx has the quantizations f32, int8, found q8_0"),
        ({"backend": "gguf", "quantization": "int8"}, "gguf has the quantizations f32, f16, bf16, q8_0"),
        ({"float32_matrices": ["layers.0.mlp.up_proj"]}, "float32_matrices require int8, found f32"),
    ],
)
def test_contradictions_in_the_manifest(bundle: Path, change: dict[str, object], fragment: str) -> None:
    content = msgspec.json.decode((bundle / "bundle.json").read_bytes())
    content["llm"] |= change
    with pytest.raises(ModelError, match=fragment):
        parse_manifest(msgspec.json.encode(content), origin="bundle.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: setattr(model.graph.node[0], "op_type", "Loop"),
            "has the operator 'Loop', which is not allowed",
        ),
        (lambda model: setattr(model.graph.node[0], "domain", "com.x"), "has the operator 'com.x.Cast'"),
        (lambda model: setattr(model.opset_import.add(), "domain", "com.x"), "imports the operators of 'com.x'"),
        (lambda model: model.graph.output.append(model.graph.output[0]), "two tensors are called 'states'"),
        (lambda model: model.graph.initializer[0].dims.extend([1] * 9), "dimensions, expected 8 at most"),
        (lambda model: setattr(model.graph.initializer[0].segment, "begin", 1), "is a piece of one"),
    ],
)
def test_operators_that_no_llm_requires(
    bundle: Path, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    model = make_model()
    change(model)
    make_onnx_bundle(bundle, model)
    with pytest.raises(ModelError, match=message):
        Bundle.open(bundle)


def test_a_field_number_that_protobuf_truncates(bundle: Path) -> None:
    """Protobuf reads 32 bits of a key: an unknown field for a reader of 64 bits could be external data for it."""
    path = bundle / "llm.onnx"
    path.write_bytes(path.read_bytes() + bytes([0xB8, 0x80, 0x80, 0x80, 0x10, 0]))
    with pytest.raises(DamagedFileError, match="a field of key 4294967352"):
        read_graph(path)
