"""The encoder in ONNX against the same encoder in transformers and in CTranslate2, every family by the same code."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from mtllm_edge import Bundle, Embedder
from mtllm_edge.backends.encoders.base import Encoder
from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.backends.encoders.onnx import OnnxEncoder
from mtllm_edge.bundle.formats.onnx import FLOAT, INT8, read_graph
from mtllm_edge.bundle.manifest import EncoderBackend
from mtllm_edge.bundle.manifest import EncoderSpec as Described
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge_export import cli
from mtllm_edge_export.encoders import onnx
from mtllm_edge_export.encoders.ctranslate2 import write_encoder
from mtllm_edge_export.encoders.onnx import write_encoder_onnx
from mtllm_edge_export.encoders.spec import EncoderQuantization
from mtllm_edge_train.models.encoder import LoadedEncoder, load_encoder
from mtllm_edge_train.models.stack import encode_english
from tests.fixtures.run_gguf import cosines
from tests.fixtures.tiny_checkpoint import Family, save_checkpoint, save_encoder
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close

FRAMES: dict[Family, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "bert": (("[CLS]",), ("[SEP]",), ()),
    "xlm-roberta": (("<s>",), ("</s>",), ()),
    "bart": (("<s>",), ("</s>",), ()),
    "m2m_100": (("{language}",), ("</s>",), ("deu_Latn", "eng_Latn", "tam_Taml")),
    "m2m": (("__{language}__",), ("</s>",), ("de", "en", "ta")),
    "mbart": (("{language}",), ("</s>",), ("de_DE", "en_XX", "ta_IN")),
    "marian": ((), ("</s>",), ()),
}
"""Family -> what stands before and after a text, and its language codes."""
TEXTS = ("Good morning.", "おはようございます", "காலை வணக்கம் " * 3, "x")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], LoadedEncoder]:
    """Encoders of the families, each made once."""

    @cache
    def make(family: Family) -> LoadedEncoder:
        folder = tmp_path_factory.mktemp("encoders") / "source"
        save_encoder(folder, family)
        return load_encoder(str(folder))

    return make


def token_ids(encoder: LoadedEncoder) -> list[list[int]]:
    """Texts as transformers' own tokenizer frames them."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(encoder.tokenizer_json)
    return [tokenizer.encode(text).ids for text in TEXTS]


def torch_states(encoder: LoadedEncoder) -> NDArray[np.float32]:
    """Every token's state, (T, D), text after text."""
    with torch.inference_mode():
        rows = [encoder.module(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in token_ids(encoder)]
    states_TD: NDArray[np.float32] = torch.cat(rows).numpy()
    return states_TD


def described(
    encoder: LoadedEncoder, backend: EncoderBackend, quantization: EncoderQuantization, kept: tuple[str, ...] = ()
) -> Described:
    return Described(
        family=encoder.family,
        backend=backend,
        quantization=quantization,
        d_model=encoder.d_model,
        max_tokens=160,
        prefix_tokens=encoder.prefix_tokens,
        suffix_tokens=encoder.suffix_tokens,
        float32_matrices=kept,
    )


def states(engine: Encoder, encoder: LoadedEncoder, *, singly: bool) -> NDArray[np.float32]:
    batch = token_ids(encoder)
    rows = [engine.encode([ids])[0] for ids in batch] if singly else engine.encode(batch)
    assert [len(states_LD) for states_LD in rows] == [len(ids) for ids in batch]
    return np.concatenate(rows)


@pytest.mark.parametrize("family", FRAMES)
def test_texts_are_framed_as_the_family_was_trained(
    family: Family, encoders: Callable[[Family], LoadedEncoder], tmp_path: Path
) -> None:
    encoder = encoders(family)
    assert (encoder.prefix_tokens, encoder.suffix_tokens, encoder.languages) == FRAMES[family]
    (tmp_path / "tokenizer.json").write_text(encoder.tokenizer_json)
    tokenizer = Tokenizer(
        tmp_path / "tokenizer.json",
        prefix_tokens=encoder.prefix_tokens,
        suffix_tokens=encoder.suffix_tokens,
        max_tokens=160,
        languages=encoder.languages,
    )
    english = encode_english(tokenizer, TEXTS)  # the tokenizers' own frame is the English one
    assert [row.ids for row in english] == token_ids(encoder)
    if encoder.languages:
        first = tokenizer.encode(["x"], language=encoder.languages[0])[0].ids[0]
        assert first != english[0].ids[0]
        with pytest.raises(UsageError, match="unknown language 'xx'"):
            tokenizer.encode(["x"], language="xx")


def test_positions_that_an_encoder_keeps_for_padding(encoders: Callable[[Family], LoadedEncoder]) -> None:
    encoder = encoders("xlm-roberta")
    assert encoder.max_positions == 190
    longest = torch.full((1, 190), 5)
    assert encoder.module(input_ids=longest).last_hidden_state.shape == (1, 190, 32)
    assert encoders("bert").max_positions == encoders("marian").max_positions == 192


@pytest.mark.parametrize("family", FRAMES)
def test_both_engines_follow_torch(family: Family, encoders: Callable[[Family], LoadedEncoder], tmp_path: Path) -> None:
    encoder = encoders(family)
    expected_TD = torch_states(encoder)
    write_encoder(encoder, tmp_path / "encoder", "float32")
    assert write_encoder_onnx(tmp_path / "encoder.onnx", encoder, "float32", []) == ()
    engines: list[Encoder] = [
        CTranslate2Encoder(tmp_path / "encoder", described(encoder, "ctranslate2", "float32"), threads=1),
        OnnxEncoder(tmp_path / "encoder.onnx", described(encoder, "onnx", "float32"), threads=1),
    ]
    for engine in engines:
        for singly in (False, True):
            found_TD = states(engine, encoder, singly=singly)
            assert_vectors_close(found_TD, expected_TD, FLOAT32)
    content = (tmp_path / "encoder.onnx").read_bytes()
    for folder in (Path(onnx.__file__).parent, Path(torch.__file__).parent):
        assert str(folder).encode() not in content  # torch notes where each node came from
    assert [path.name for path in tmp_path.glob("*.onnx*")] == ["encoder.onnx"]


def test_int8_follows_within_the_gate(encoders: Callable[[Family], LoadedEncoder], tmp_path: Path) -> None:
    encoder = encoders("m2m_100")
    expected_TD = torch_states(encoder)
    kept = write_encoder_onnx(tmp_path / "encoder.onnx", encoder, "int8", token_ids(encoder))
    engine = OnnxEncoder(tmp_path / "encoder.onnx", described(encoder, "onnx", "int8", kept), threads=1)
    for singly in (False, True):
        found = cosines(expected_TD, states(engine, encoder, singly=singly))
        assert found.mean() >= 0.99
        assert found.min() >= onnx.GATE_COSINE_MIN
    stored = read_graph(tmp_path / "encoder.onnx").initializers
    assert stored["word_embeddings"] == (INT8, encoder.word_embeddings.shape)
    matrices = [name for name, (kind, shape) in stored.items() if kind == FLOAT and len(shape) == 2]
    assert {name.removesuffix(".weight") for name in matrices if name.startswith("layers.")} == set(kept)


def test_a_matrix_that_int8_ruins_stays_in_float32(encoders: Callable[[Family], LoadedEncoder], tmp_path: Path) -> None:
    """A huge activation, which the next matrix takes back: in torch nothing changes."""
    encoder = encoders("bert")
    layer = copy.deepcopy(encoder.full_model)
    ruined = dataclasses.replace(encoder, module=layer, full_model=layer)
    with torch.no_grad():
        attention = layer.encoder.layer[1].attention
        attention.self.value.weight[5] *= 4096
        attention.self.value.bias[5] *= 4096
        attention.output.dense.weight[:, 5] /= 4096
    kept = write_encoder_onnx(tmp_path / "encoder.onnx", ruined, "int8", token_ids(encoder))
    assert "encoder.layer.1.attention.output.dense" in kept
    assert len(kept) <= 4
    engine = OnnxEncoder(tmp_path / "encoder.onnx", described(encoder, "onnx", "int8", kept), threads=1)
    found = cosines(torch_states(encoder), states(engine, encoder, singly=False))
    assert found.mean() >= 0.99


def test_a_large_encoder_is_sent_to_ctranslate2(
    encoders: Callable[[Family], LoadedEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match="export with --encoder-backend ctranslate2"):
        write_encoder_onnx(tmp_path / "encoder.onnx", encoders("bert"), "float32", [])
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_with_both_halves_in_onnx(tmp_path: Path) -> None:
    """Language tokens, a strided bridge, bidirectional attention: as the command line makes it."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", family="m2m", attention="bidirectional", stride=2)
    out = tmp_path / "bundle"
    options = ["--encoder-backend", "onnx", "--encoder-quantization", "float32"]
    options += ["--llm-backend", "onnx", "--llm-quantization", "f32"]
    result = CliRunner().invoke(cli.export, [str(checkpoint), "--out", str(out), *options])
    assert result.exception is None, result.output
    bundle = Bundle.open(out)
    bundle.verify()
    encoder = bundle.manifest.encoder
    assert (encoder.family, encoder.backend, encoder.quantization) == ("m2m_100", "onnx", "float32")
    assert (encoder.prefix_tokens, bundle.manifest.languages) == (("__{language}__",), ("de", "en", "ta"))
    assert not [name for name in bundle.manifest.files if name.startswith("encoder/")]
    assert min(row.cosine_min for row in bundle.manifest.parity) >= 0.9999
    with Embedder.load(bundle, threads=1) as embedder:
        german, tamil = (embedder.embed(["x y"], language=code) for code in ("de", "ta"))
    assert not np.allclose(german, tamil)


def test_parts_have_no_encoder_in_onnx(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--encoder-backend", "onnx", "--without-llm"]
    result = CliRunner().invoke(cli.export, [str(checkpoint), "--out", str(tmp_path / "b"), *options])
    assert isinstance(result.exception, UsageError)
    assert "the encoder of parts is in CTranslate2" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
