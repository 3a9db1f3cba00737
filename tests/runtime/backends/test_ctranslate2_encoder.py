"""The encoder in CTranslate2, compared with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.formats.ctranslate2 import read_shapes
from mtllm_edge.errors import EngineError, ModelError
from tests.fixtures import tiny_bundle
from tests.fixtures.numpy_reference import bert_states, cosine
from tests.fixtures.tiny_bundle import D_MODEL
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close

ENCODER = manifest.EncoderSpec(
    family="bert",
    backend="ctranslate2",
    quantization="float32",
    d_model=tiny_bundle.D_MODEL,
    max_tokens=tiny_bundle.MAX_TOKENS,
    prefix_tokens=("<s>",),
    suffix_tokens=("</s>",),
)
BATCH = [[0, 5, 9, 30, 2], [0, 2], list(range(tiny_bundle.MAX_TOKENS)), [0, 17, 17, 17, 40, 8, 2]]


@pytest.fixture
def encoder(tiny_bundle: Path) -> Iterator[CTranslate2Encoder]:
    engine = CTranslate2Encoder(tiny_bundle / "encoder", ENCODER, threads=2)
    yield engine
    engine.close()


def vocabulary_size(bundle: Path) -> int:
    return read_shapes(bundle / "encoder" / "model.bin")["encoder/embeddings_0/weight"][0]


@pytest.mark.parametrize(("quantization", "least"), [("float32", 0.999999), ("int8", tiny_bundle.INT8_COSINE)])
def test_matches_numpy(tiny_variant: Callable[..., Path], quantization: str, least: float) -> None:
    bundle = tiny_variant(encoder_quantization=quantization)
    expected = msgspec.structs.replace(ENCODER, quantization=quantization)
    engine = CTranslate2Encoder(bundle / "encoder", expected, threads=2)
    weights = tiny_bundle.encoder_weights(np.random.default_rng(tiny_bundle.SEED), vocabulary_size(bundle))
    for hidden_LD, ids in zip(engine.encode(BATCH), BATCH, strict=True):
        assert hidden_LD.dtype == np.float32
        assert hidden_LD.shape == (len(ids), tiny_bundle.D_MODEL)
        assert cosine(hidden_LD, bert_states(weights, ids)) >= least


def test_batched_equals_single(encoder: CTranslate2Encoder) -> None:
    for together_LD, ids in zip(encoder.encode(BATCH), BATCH, strict=True):
        assert_vectors_close(together_LD, encoder.encode([ids])[0], FLOAT32)


def test_no_texts(encoder: CTranslate2Encoder) -> None:
    assert encoder.encode([]) == []


@pytest.mark.parametrize("token_id", [-1, 10_000])
def test_ids_outside_the_vocabulary(encoder: CTranslate2Encoder, tiny_bundle: Path, token_id: int) -> None:
    size = vocabulary_size(tiny_bundle)
    with pytest.raises(ModelError, match=f"token id {token_id} is outside the model.s vocabulary of {size} tokens"):
        encoder.encode([[0, 2], [0, token_id, 2]])


def test_the_last_id_is_valid(encoder: CTranslate2Encoder, tiny_bundle: Path) -> None:
    assert encoder.encode([[vocabulary_size(tiny_bundle) - 1]])[0].shape == (1, D_MODEL)


def test_text_without_tokens(encoder: CTranslate2Encoder) -> None:
    with pytest.raises(EngineError, match="without tokens"):
        encoder.encode([[0, 2], []])


def test_non_finite_weights(fresh_bundle: Path) -> None:
    weights = tiny_bundle.encoder_weights(np.random.default_rng(tiny_bundle.SEED), vocabulary_size(fresh_bundle))
    weights["1.ff_norm.bias"][0] = np.nan
    vocabulary = msgspec.json.decode((fresh_bundle / "encoder" / "vocabulary.json").read_bytes())
    tiny_bundle.write_encoder(fresh_bundle / "broken", weights, vocabulary, "float32")
    with pytest.raises(EngineError, match="broken: CTranslate2 returned numbers that are not finite"):
        CTranslate2Encoder(fresh_bundle / "broken", ENCODER, threads=1).encode(BATCH)


def test_close_twice_and_use_after(tiny_bundle: Path) -> None:
    engine = CTranslate2Encoder(tiny_bundle / "encoder", ENCODER, threads=1)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.encode(BATCH)


def test_an_engine_error_is_one_line(fresh_bundle: Path) -> None:
    path = fresh_bundle / "encoder" / "model.bin"
    path.write_bytes(path.read_bytes().replace(b"layer_0/ffn/linear_0/weight\0", b"layer_9/ffn/linear_0/weight\0"))
    with pytest.raises(EngineError, match=r"encoder: CTranslate2 cannot load it \(.*linear_0.*\); see") as caught:
        CTranslate2Encoder(fresh_bundle / "encoder", ENCODER, threads=1)
    assert "\n" not in str(caught.value)
