"""The encoder in ONNX Runtime: padded batches compared with NumPy, and files that must not reach a native parser."""

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
from mtllm_edge.backends.encoders.onnx import OnnxEncoder
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.cli.main import main
from mtllm_edge.errors import EngineError, ModelError, UsageError
from tests.fixtures import tiny_bundle
from tests.fixtures.subprocesses import run_python
from tests.fixtures.tiny_onnx import make_encoder, make_onnx_bundle, make_onnx_encoder_bundle, matrix, table
from tests.fixtures.tolerances import FLOAT32, LLAMA_CPP, assert_vectors_close
from tests.runtime.test_isolation import CLASSIFY

ENCODER = manifest.EncoderSpec(
    family="bert",
    backend="onnx",
    quantization="float32",
    d_model=tiny_bundle.D_MODEL,
    max_tokens=tiny_bundle.MAX_TOKENS,
    prefix_tokens=("<s>",),
    suffix_tokens=("</s>",),
)
ROWS = 300
BATCH = [[0, 5, 9, 30, 2], [0, 2], list(range(40)), [0, 17, 17, ROWS - 1, 2]]
TEXTS = ["the team is good", "a", "the match is bad " * 8]


@pytest.fixture
def bundle(fresh_bundle: Path) -> Path:
    return make_onnx_encoder_bundle(fresh_bundle)


@pytest.fixture
def encoder(bundle: Path) -> OnnxEncoder:
    return OnnxEncoder(bundle / "encoder.onnx", ENCODER, threads=1)


def states(ids: list[int]) -> NDArray[np.float32]:
    return np.cumsum(table(ROWS)[ids], axis=0) @ matrix(tiny_bundle.D_MODEL)


def test_a_padded_batch_equals_single_texts(encoder: OnnxEncoder) -> None:
    for hidden_LD, ids in zip(encoder.encode(BATCH), BATCH, strict=True):
        assert hidden_LD.dtype == np.float32
        assert_vectors_close(hidden_LD, states(ids), FLOAT32)
        assert_vectors_close(encoder.encode([ids])[0], states(ids), FLOAT32)
    assert encoder.encode([]) == []


@pytest.mark.parametrize("token_id", [-1, ROWS])
def test_ids_outside_the_vocabulary(encoder: OnnxEncoder, token_id: int) -> None:
    with pytest.raises(ModelError, match=f"token id {token_id} is outside the model.s vocabulary of {ROWS} tokens"):
        encoder.encode([[0, 2], [0, token_id, 2]])


def test_text_without_tokens(encoder: OnnxEncoder) -> None:
    with pytest.raises(EngineError, match="without tokens"):
        encoder.encode([[0, 2], []])


def test_non_finite_weights(bundle: Path) -> None:
    model = make_encoder()
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "matrix")
    stored.raw_data = np.full((tiny_bundle.D_MODEL, tiny_bundle.D_MODEL), np.nan, np.float32).tobytes()
    onnx.save(model, bundle / "encoder.onnx")
    with pytest.raises(EngineError, match="numbers that are not finite"):
        OnnxEncoder(bundle / "encoder.onnx", ENCODER, threads=1).encode(BATCH)


def test_closed(encoder: OnnxEncoder) -> None:
    encoder.close()
    encoder.close()
    with pytest.raises(EngineError, match="the encoder is closed"):
        encoder.encode(BATCH)


def test_an_error_of_onnx_runtime_is_one_line(bundle: Path) -> None:
    model = make_encoder()
    model.graph.node[1].input[0] = "nothing"
    onnx.save(model, bundle / "encoder.onnx")
    with pytest.raises(EngineError, match=r"encoder\.onnx: ONNX Runtime cannot load it \(.*nothing") as caught:
        OnnxEncoder(bundle / "encoder.onnx", ENCODER, threads=1)
    assert "\n" not in str(caught.value)


def test_the_pipeline_and_the_commands(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Embedder.load(bundle, threads=1) as embedder:
        together_NE = embedder.embed(TEXTS)
        singly_NE = np.concatenate([embedder.embed([text]) for text in TEXTS])
    assert_vectors_close(together_NE, singly_NE, LLAMA_CPP)
    assert main(["info", str(bundle)]) == 0
    assert "bert, float32 ONNX, 16 wide" in capsys.readouterr().out
    assert main(["doctor", str(bundle), "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert report["engines"]["onnxruntime"]["version"]
    assert report["bundle"]["reason"]  # the LLM is in GGUF, so llama.cpp was probed


def test_unused_engines_are_not_imported(bundle: Path, tmp_path: Path) -> None:
    code = CLASSIFY + "print(*sorted({'ctranslate2', 'onnxruntime', 'llama_cpp'} & set(sys.modules)))"
    child = run_python(code, str(make_onnx_bundle(bundle)), folder=tmp_path)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == "onnxruntime"


def test_without_the_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'mtllm-edge\[onnx\]'"):
        Embedder.load(bundle)


def _int8_table(model: onnx.ModelProto) -> None:
    model.graph.initializer[-1].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((ROWS, tiny_bundle.D_MODEL), np.int8), "word_embeddings")
    )


def _no_table(model: onnx.ModelProto) -> None:
    model.graph.initializer[-1].name = "embeddings"


def _wide(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 64


def _llm(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "inputs_embeds"


def _external(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[-1], "../../secret")
    model.graph.initializer[-1].ClearField("raw_data")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (_no_table, "word embeddings have shape [], expected [vocabulary, 16]"),
        (_wide, "width is ['64'], expected 16"),
        (_llm, "has inputs inputs_embeds, attention_mask and outputs states, not those of an encoder"),
        (_external, "tensor 'word_embeddings' is outside the file"),
        (lambda model: model.CopyFrom(make_encoder(width=32)), "expected [vocabulary, 16]"),
    ],
)
def test_invalid_graphs_do_not_reach_onnx_runtime(
    fresh_bundle: Path, change: Callable[[onnx.ModelProto], None], fragment: str
) -> None:
    model = make_encoder()
    change(model)
    make_onnx_encoder_bundle(fresh_bundle, model)
    with pytest.raises(ModelError) as caught:
        Bundle.open(fresh_bundle)
    assert "encoder.onnx: " in str(caught.value)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_int8_table_is_accepted(fresh_bundle: Path) -> None:
    model = make_encoder()
    _int8_table(model)
    Bundle.open(make_onnx_encoder_bundle(fresh_bundle, model))


def test_a_damaged_or_missing_file(bundle: Path) -> None:
    content = (bundle / "encoder.onnx").read_bytes()
    (bundle / "encoder.onnx").write_bytes(b"\xff" * 64 + content[64:])
    with pytest.raises(ModelError, match=r"encoder\.onnx: "):
        Bundle.open(bundle)
    (bundle / "encoder.onnx").unlink()
    with pytest.raises(ModelError, match=r"encoder\.onnx: missing"):
        Bundle.open(bundle)
    parts = msgspec.json.decode((bundle / "bundle.json").read_bytes())
    del parts["files"]["encoder.onnx"]
    (bundle / "bundle.json").write_bytes(msgspec.json.encode(parts))
    with pytest.raises(ModelError, match=r"does not list encoder\.onnx"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "change", [{}, {"quantization": "int8", "backend": "ctranslate2"}], ids=["float32", "ctranslate2"]
)
def test_contradictions_in_the_manifest(bundle: Path, change: dict[str, object]) -> None:
    content = msgspec.json.decode((bundle / "bundle.json").read_bytes())
    content["encoder"] |= change | {"float32_matrices": ["layers.0.fc1"]}
    with pytest.raises(ModelError, match="float32_matrices require int8 in onnx, found"):
        parse_manifest(msgspec.json.encode(content), origin="bundle.json")
