"""The LLM in llama.cpp, compared with NumPy, and input that must not reach its assertions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from mtllm_edge.backends.llms.llama_cpp import GgufLlm
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.bundle import manifest
from mtllm_edge.errors import EngineError, ModelError, UsageError
from tests.fixtures import tiny_bundle
from tests.fixtures.numpy_reference import cosine, llama_pooled, read_gguf
from tests.fixtures.tolerances import ENGINES, LLAMA_CPP, assert_vectors_close

SETTINGS = EngineSettings(extra_buffers=True, flash_attention=True, note="test")
LENGTHS = (1, 2, 33, 7, 64, 5, 18, 3)
LLM = manifest.LlmSpec(
    architecture="llama",
    n_embd=tiny_bundle.N_EMBD,
    n_layer=tiny_bundle.N_LAYER,
    quantization="f32",
    attention="causal",
    pooling="mean",
)


def inputs(lengths: tuple[int, ...] = LENGTHS) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    return [rng.standard_normal((length, tiny_bundle.N_EMBD), dtype=np.float32) for length in lengths]


def load(bundle: Path, llm: manifest.LlmSpec = LLM, settings: EngineSettings = SETTINGS) -> GgufLlm:
    return GgufLlm(bundle / "llm.gguf", llm, settings=settings, threads=2, max_tokens=256, max_texts=16)


@pytest.fixture
def llm(tiny_bundle: Path) -> Iterator[GgufLlm]:
    body = load(tiny_bundle)
    yield body
    body.close()


def test_token_ids_match_their_embeddings(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    table_VE = rng.standard_normal((tiny_bundle.STUB_ROWS, tiny_bundle.N_EMBD), dtype=np.float32)
    path = tmp_path / "llm.gguf"
    tiny_bundle.write_llm(path, tiny_bundle.llm_weights(rng), embeddings=table_VE)
    body = GgufLlm(path, LLM, settings=SETTINGS, threads=1, max_tokens=64, max_texts=4)
    ids = [[3, 0, 31], [7], [5, 5, 9, 30, 1]]
    embedded = [table_VE[text] for text in ids]
    expected_NE = body.pool(embedded)
    assert_vectors_close(body.pool_tokens(ids), expected_NE, LLAMA_CPP)
    assert_vectors_close(body.pool(embedded), expected_NE, LLAMA_CPP)  # after tokens, as before
    assert body.pool_tokens([]).shape == (0, tiny_bundle.N_EMBD)
    for strange in (tiny_bundle.STUB_ROWS, -1):
        with pytest.raises(ModelError, match=f"token id {strange} is outside the model.s vocabulary of 32 tokens"):
            body.pool_tokens([[1], [strange]])
    with pytest.raises(EngineError, match="a text without tokens"):
        body.pool_tokens([[1], []])
    with pytest.raises(EngineError, match="a batch of 65 tokens, expected at most 64"):
        body.pool_tokens([[1] * 65])
    with pytest.raises(EngineError, match="a batch of 5 texts, expected at most 4"):
        body.pool_tokens([[1]] * 5)
    body.close()
    with pytest.raises(EngineError, match="is closed"):
        body.pool_tokens([[1]])


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, extra_buffers=False, flash_attention=False)])
@pytest.mark.parametrize(
    ("architecture", "attention"),
    [("llama", "causal"), ("llama", "bidirectional"), ("llama-embed", "bidirectional")],
)
def test_matches_numpy(
    tiny_variant: Callable[..., Path], architecture: str, attention: str, settings: EngineSettings
) -> None:
    bundle = tiny_variant(architecture=architecture, attention=attention)
    body = load(bundle, msgspec.structs.replace(LLM, architecture=architecture, attention=attention), settings)
    pooled_NE = body.pool(inputs())
    weights = read_gguf(bundle / "llm.gguf")
    for pooled_E, inputs_LE in zip(pooled_NE, inputs(), strict=True):
        expected_E = llama_pooled(weights, inputs_LE, causal=attention == "causal")
        assert_vectors_close(pooled_E, expected_E, ENGINES)
    body.close()


def test_attention_matters(tiny_bundle: Path) -> None:
    weights = read_gguf(tiny_bundle / "llm.gguf")
    long_LE = inputs()[2]
    causal_E, both_E = (llama_pooled(weights, long_LE, causal=causal) for causal in (True, False))
    assert cosine(causal_E, both_E) < 0.999  # otherwise the test above proves nothing


@pytest.mark.parametrize(("quantization", "least"), [("q8_0", 0.999), ("q4_0", 0.97)])
def test_quantized_llms_are_close(tiny_variant: Callable[..., Path], quantization: str, least: float) -> None:
    bundle = tiny_variant(quantization=quantization)
    body = load(bundle, msgspec.structs.replace(LLM, quantization=quantization))
    weights = read_gguf(bundle / "llm.gguf")
    for pooled_E, inputs_LE in zip(body.pool(inputs()), inputs(), strict=True):
        assert cosine(pooled_E, llama_pooled(weights, inputs_LE, causal=True)) >= least
    body.close()


def test_batched_equals_single(llm: GgufLlm) -> None:
    together_NE = llm.pool(inputs())
    singly_NE = np.concatenate([llm.pool([inputs_LE]) for inputs_LE in inputs()])
    assert_vectors_close(together_NE, singly_NE, LLAMA_CPP)


def test_each_span_has_its_own_mean(llm: GgufLlm) -> None:
    one_LE, two_LE = inputs((7, 12))
    batch = [one_LE, two_LE, one_LE]
    begin_E, end_E, second_E, third_E = llm.pool(batch, [((0, 3), (3, 7)), (), ((2, 4),)])
    whole_E, second_alone_E = llm.pool([one_LE, two_LE])
    assert_vectors_close((3 * begin_E + 4 * end_E) / 7, whole_E, LLAMA_CPP)
    assert_vectors_close(second_E, second_alone_E, LLAMA_CPP)
    assert_vectors_close(begin_E, llm.pool([one_LE[:3]])[0], LLAMA_CPP)  # causal: later inputs have no effect
    first_four_E, first_two_E = llm.pool([one_LE[:4], one_LE[:2]])
    assert_vectors_close(third_E, (4 * first_four_E - 2 * first_two_E) / 2, 3 * LLAMA_CPP)  # of two results, multiplied


@pytest.mark.parametrize("max_tokens", [257, 514, 600])
def test_any_context_size_is_safe(tiny_bundle: Path, max_tokens: int) -> None:
    body = GgufLlm(tiny_bundle / "llm.gguf", LLM, settings=SETTINGS, threads=2, max_tokens=max_tokens, max_texts=64)
    batch = inputs((1,) * 63 + (5,))
    last_E, single_E = body.pool(batch)[-1], body.pool(batch[-1:])[0]
    assert_vectors_close(last_E, single_E, LLAMA_CPP)
    body.close()


def test_memory_is_cleared_between_batches(llm: GgufLlm) -> None:
    first_NE = llm.pool(inputs((9, 4)))
    llm.pool(inputs((64, 64, 64, 64)))
    np.testing.assert_array_equal(llm.pool(inputs((9, 4))), first_NE)


def test_a_full_batch_and_an_empty_batch(llm: GgufLlm) -> None:
    assert llm.pool(inputs((256,))).shape == (1, tiny_bundle.N_EMBD)
    assert llm.pool(inputs((16,) * 16)).shape == (16, tiny_bundle.N_EMBD)
    assert llm.pool([]).shape == (0, tiny_bundle.N_EMBD)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (inputs((257,)), "257 tokens, expected at most 256"),
        (inputs((200, 57)), "257 tokens, expected at most 256"),
        (inputs((1,) * 17), "17 texts, expected at most 16"),
        ([np.zeros((3, tiny_bundle.N_EMBD + 1), np.float32)], r"shape \(3, 33\), expected \(1 or more, 32\)"),
        ([np.zeros(tiny_bundle.N_EMBD, np.float32)], r"shape \(32,\)"),
        ([*inputs((3,)), np.zeros((0, tiny_bundle.N_EMBD), np.float32)], r"shape \(0, 32\)"),
        ([np.full((3, tiny_bundle.N_EMBD), np.nan, np.float32)], "not finite"),
        ([np.full((3, tiny_bundle.N_EMBD), np.inf, np.float32)], "not finite"),
        ([np.zeros((3, tiny_bundle.N_EMBD))], "an input of type float64, expected arrays of float32"),
        ([np.zeros((3, tiny_bundle.N_EMBD), np.complex64)], "an input of type complex64, expected arrays of float32"),
        ([np.full((3, tiny_bundle.N_EMBD), None, object)], "an input of type object"),
        ([[[0.0] * tiny_bundle.N_EMBD]], "an input of type list"),
    ],
)
def test_input_that_would_abort_llama_cpp_is_refused(
    llm: GgufLlm, batch: list[NDArray[np.float32]], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        llm.pool(batch)
    assert np.isfinite(llm.pool(inputs())).all()  # and remains usable


@pytest.mark.parametrize("spans", [[((0, 4),)], [((-3, -1),)], [((2, 2),)], [((2, 1),)], [], [(), ()]])
def test_spans_outside_their_text_are_refused(llm: GgufLlm, spans: list[tuple[tuple[int, int], ...]]) -> None:
    with pytest.raises(EngineError, match="spans"):
        llm.pool(inputs((3,)), spans)


@pytest.mark.parametrize("ids", [[1.5], [float("nan")], ["a"], [None]])
def test_token_ids_must_be_integers(llm: GgufLlm, ids: list[int]) -> None:
    with pytest.raises(ModelError, match="must be integers"):
        llm.pool_tokens([[1], ids])


@pytest.mark.parametrize(
    "numbers",
    [
        {"threads": 0},
        {"threads": 100_000},
        {"max_texts": 0},
        {"max_texts": 257},
        {"max_tokens": 0},
        {"max_tokens": 2**31},
    ],
)
def test_invalid_context_sizes(tiny_bundle: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected"):
        GgufLlm(tiny_bundle / "llm.gguf", LLM, settings=SETTINGS, **({"threads": 1} | numbers))  # type: ignore[arg-type]


def test_non_finite_results_are_an_error(fresh_bundle: Path) -> None:
    weights = tiny_bundle.llm_weights(np.random.default_rng(tiny_bundle.SEED))
    weights["output_norm.weight"][3] = np.inf
    tiny_bundle.write_llm(fresh_bundle / "llm.gguf", weights)
    with pytest.raises(EngineError, match=r"llm\.gguf: llama\.cpp returned numbers that are not finite"):
        load(fresh_bundle).pool(inputs())


def test_the_file_must_match_the_manifest(tiny_bundle: Path) -> None:
    with pytest.raises(ModelError, match=r"llm\.gguf: width and layers are \(32, 2\), the manifest says \(32, 3\)"):
        load(tiny_bundle, msgspec.structs.replace(LLM, n_layer=3))


def test_errors_quote_llama_cpp(fresh_bundle: Path) -> None:
    path = fresh_bundle / "llm.gguf"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(EngineError, match=r"llm\.gguf: llama\.cpp cannot load it \(.*token_embd.*\); see"):
        load(fresh_bundle)


def test_close_twice_and_use_after(tiny_bundle: Path) -> None:
    body = load(tiny_bundle)
    body.close()
    body.close()
    with pytest.raises(EngineError, match="closed"):
        body.pool(inputs())


def test_threads_share_one_context(llm: GgufLlm) -> None:
    jobs = [inputs((length, 3, 20)) for length in range(1, 17)]
    expected = [llm.pool(job) for job in jobs]
    with ThreadPoolExecutor(4) as executor:
        results = list(executor.map(llm.pool, jobs))
    for one_NE, other_NE in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one_NE, other_NE)
