"""The encoder in ONNX against the same encoder in transformers and in CTranslate2, every family by the same code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtllm_edge.encoders.base import Encoder
from mtllm_edge.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.encoders.onnx import OnnxEncoder
from mtllm_edge.manifest import Encoder as Described
from mtllm_edge.manifest import EncoderBackend
from mtllm_edge_export import encoder_onnx
from mtllm_edge_export.encoder_ctranslate2 import EncoderQuantization, write_encoder
from mtllm_edge_export.encoder_onnx import write_encoder_onnx
from mtllm_edge_train.encoders import LoadedEncoder, load_encoder
from tests.export.engines import cosines
from tests.export.tiny_checkpoint import Family, save_encoder

FAMILIES: tuple[Family, ...] = ("bert", "xlm-roberta", "bart", "m2m_100", "m2m", "mbart", "marian")
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


@pytest.mark.parametrize("family", FAMILIES)
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
            assert cosines(expected_TD, found_TD).min() >= 0.9999
            np.testing.assert_allclose(found_TD, expected_TD, atol=2e-3 * np.abs(expected_TD).max())
    content = (tmp_path / "encoder.onnx").read_bytes()
    for folder in (Path(encoder_onnx.__file__).parent, Path(torch.__file__).parent):
        assert str(folder).encode() not in content  # torch notes where each node came from
    assert [path.name for path in tmp_path.glob("*.onnx*")] == ["encoder.onnx"]
