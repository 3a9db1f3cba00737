"""Windows of texts that are longer than the encoder's maximum."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtllm_edge import Classifier, Embedder, Prediction
from mtllm_edge.embedder import TruncationWarning
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.tokenization.encoding import Encoding
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge.tokenization.windows import OVERLAP, Windows, split_into_windows, window_spans
from tests.fixtures import tiny_bundle as tiny
from tests.fixtures.cli_result import Run
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close, assert_vectors_close

LONG = "the team is good and the match was bad " * 20
SHORT = ["the team is good", "a", "не хорошо", "यह होटल अच्छा है"]
LONGER = "хороший отель, плохой матч: " * 30


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(tiny_bundle, task="topic", threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def embedder(tiny_bundle: Path) -> Iterator[Embedder]:
    with Embedder.load(tiny_bundle, threads=2) as loaded:
        yield loaded


@given(length=st.integers(1, 5000), room=st.integers(1, 600))
def test_windows_cover_a_text_evenly_and_overlap(length: int, room: int) -> None:
    spans = window_spans(length, room)
    if length <= room:
        assert spans == [(0, length)]
        return
    overlap = min(OVERLAP, room // 4)
    assert (spans[0][0], spans[-1][1]) == (0, length)
    sizes = [end - begin for begin, end in spans]
    assert max(sizes) <= room
    assert max(sizes) - min(sizes) <= 1
    assert all(end - begin == overlap for (_, end), (begin, _) in itertools.pairwise(spans))
    assert (len(spans) - 1) * (room - overlap) + overlap < length  # one window fewer would not suffice


def test_an_encoder_of_512_tokens() -> None:
    (full_text,) = (Encoding([1, *range(10, 1010), 2], False),)
    windows = split_into_windows([full_text], prefix=1, suffix=1, max_tokens=512)
    assert windows.counts == [3]
    first, second, third = (window.ids for window in windows.encodings)
    assert {ids[0] for ids in (first, second, third)} == {1}
    assert {ids[-1] for ids in (first, second, third)} == {2}
    assert first[-1 - OVERLAP : -1] == second[1 : 1 + OVERLAP]
    assert second[-1 - OVERLAP : -1] == third[1 : 1 + OVERLAP]
    joined = first[1:-1] + second[1 + OVERLAP : -1] + third[1 + OVERLAP : -1]
    assert joined == list(range(10, 1010))


def test_an_encoder_without_special_tokens() -> None:
    windows = split_into_windows([Encoding([*range(7)], False)], prefix=0, suffix=0, max_tokens=4)
    assert [window.ids for window in windows.encodings] == [[0, 1, 2, 3], [3, 4, 5, 6]]


@pytest.mark.parametrize("use_sentencepiece", [False, True])
def test_every_token_of_a_long_text_is_in_a_window(tiny_bundle: Path, use_sentencepiece: bool) -> None:
    keywords: Any = {"prefix_tokens": ["<s>"], "suffix_tokens": ["</s>"], "use_sentencepiece": use_sentencepiece}
    short = Tokenizer(tiny_bundle / "tokenizer.json", max_tokens=20, **keywords)
    tokenizer = Tokenizer(tiny_bundle / "tokenizer.json", max_tokens=5000, **keywords)
    texts = [LONG, "a", LONGER]
    windows = short.windows(short.encode(texts, truncate=False))
    assert windows.counts[1] == 1
    for pieces, full_text in zip(windows.by_text, tokenizer.encode(texts), strict=True):
        joined = pieces[0].ids[:-1]
        for piece in pieces[1:]:
            joined += piece.ids[1 + 18 // 4 : -1]
        assert [*joined, full_text.ids[-1]] == full_text.ids
        assert all(len(piece.ids) <= 20 and not piece.truncated for piece in pieces)


def test_the_mean_is_weighted_by_tokens() -> None:
    encoded = [Encoding([0] * size, False) for size in (4, 3, 1, 5, 6)]
    windows = Windows(encoded, [1, 3, 1])
    rows_WX = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    mean_NX = windows.mean(rows_WX)
    assert mean_NX.dtype == np.float32
    np.testing.assert_array_equal(mean_NX[[0, 2]], rows_WX[[0, 4]])
    np.testing.assert_allclose(mean_NX[1], np.average(rows_WX[1:4], axis=0, weights=[3, 1, 5]), rtol=1e-6)
    assert Windows(encoded, [1] * 5).mean(rows_WX) is rows_WX
    assert Windows([], []).mean(np.empty((0, 7), np.float32)).shape == (0, 7)


def test_pool_is_the_mean_of_single_windows(embedder: Embedder) -> None:
    windows = embedder.windows([LONG], long_texts="pool")
    assert len(windows.encodings) > 3
    single_WE = np.concatenate([embedder.pool([window]) for window in windows.encodings])
    expected_E = np.average(single_WE, axis=0, weights=[len(window.ids) for window in windows.encodings])
    pooled_NE = embedder.embed([SHORT[0], LONG, SHORT[1]], long_texts="pool")
    assert_vectors_close(pooled_NE[1], expected_E, LLAMA_CPP)
    cut_NE = embedder.pool(embedder.encode([LONG]))
    assert np.abs(pooled_NE[1] - cut_NE[0]).max() > 0.05


def test_a_batch_of_long_texts_equals_its_single_texts(classifier: Classifier) -> None:
    texts = [SHORT[0], LONG, SHORT[1], LONGER, SHORT[2], LONG[:400]]
    together = classifier.classify(texts, long_texts="pool")
    for text, prediction in zip(texts, together, strict=True):
        (single_prediction,) = classifier.classify([text], long_texts="pool")
        assert (prediction.tokens, prediction.windows, prediction.truncated) == (
            single_prediction.tokens,
            single_prediction.windows,
            False,
        )
        assert_probabilities_close(prediction.probabilities, single_prediction.probabilities, LLAMA_CPP)
    assert [prediction.windows > 1 for prediction in together] == [False, True, False, True, False, True]


def test_pool_averages_the_vectors(classifier: Classifier, embedder: Embedder) -> None:
    windows = embedder.windows([LONGER], long_texts="pool")
    head = classifier._head("topic")
    weights = [len(window.ids) for window in windows.encodings]
    pooled_WE = embedder.pool(windows.encodings)
    (pool,) = classifier.classify([LONGER], long_texts="pool")
    mean_NE = np.average(pooled_WE, axis=0, weights=weights)[None].astype(np.float32)
    assert_probabilities_close([*pool.probabilities.values()], head.probabilities(mean_NE)[0], LLAMA_CPP)
    assert pool.tokens == sum(weights)


def test_short_texts_are_unchanged_to_the_last_bit(classifier: Classifier) -> None:
    assert classifier.classify(SHORT, long_texts="pool") == classifier.classify(SHORT)
    assert classifier.classify([], long_texts="pool") == []


def test_windows_of_all_texts_share_batches(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder.load(tiny_bundle, threads=2) as embedder:
        encode, calls = embedder._encoder.encode, []

        def counted(batch: Sequence[Sequence[int]]) -> list[Any]:
            calls.append([len(ids) for ids in batch])
            return encode(batch)

        monkeypatch.setattr(embedder._encoder, "encode", counted)
        text_counts: list[int] = []
        texts = [" ".join(str(number * factor) for factor in range(60)) for number in range(1, 11)]
        embedder.embed(texts, long_texts="pool", progress=text_counts.append)
    assert sum(map(len, calls)) >= 30
    assert len(calls) < 10
    assert sum(text_counts) == 10
    assert len(text_counts) == len(calls)


def test_embed_warns_of_truncated_texts_only(embedder: Embedder) -> None:
    embedder.embed([LONG], long_texts="pool")  # warnings are errors
    with pytest.warns(TruncationWarning):
        embedder.embed([LONG])


def test_ten_thousand_characters(classifier: Classifier) -> None:
    (prediction,) = classifier.classify(["хороший отель " * 720], long_texts="pool")
    assert prediction.windows > 100
    assert not prediction.truncated
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_windows_are_for_single_texts(tiny_variant: Callable[..., Path], embedder: Embedder) -> None:
    bundle = tiny_variant(tasks=None, kinds=None, seed=9)
    tasks: dict[str, tuple[str, ...]] = {"nli": ("yes", "no"), "mc": ()}
    kinds = {"nli": "pair", "mc": "multiple_choice"}
    folder = tiny.make_tiny_bundle(bundle.parent / "kinds", tasks=tasks, kinds=kinds)  # type: ignore[arg-type]
    with Classifier.load(folder, task="nli", threads=2) as classifier:
        (cut,) = classifier.classify([(LONG, "a team")])
        assert (cut.truncated, cut.windows) == (True, 1)
        for task, item in (("nli", (LONG, "a team")), ("mc", (LONG, ["a", "b"]))):
            with pytest.raises(UsageError, match=f"task '{task}' is of the kind .* only single texts are read in win"):
                classifier.classify([item], task=task, long_texts="pool")
    with pytest.raises(DataError, match="a reading in windows reads one text at a time, but text 1 is a pair"):
        embedder.windows(["a", ("a", "b")], long_texts="pool")


def test_unknown_values_of_long_texts(classifier: Classifier, embedder: Embedder) -> None:
    with pytest.raises(UsageError, match="long_texts is 'all', expected 'cut' or 'pool'"):
        classifier.classify(SHORT, long_texts="all")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="long_texts is 'vote', expected 'cut' or 'pool'"):
        embedder.embed(SHORT, long_texts="vote")  # type: ignore[arg-type]


def test_predictions_without_windows() -> None:
    prediction = Prediction(label="a", probabilities={"a": 1.0}, tokens=3, truncated=False)
    assert (prediction.windows, prediction.abstained) == (1, False)


def test_windows_in_the_output_of_classify(run: Run, tiny_bundle: Path) -> None:
    arguments = ("classify", "-b", tiny_bundle, "-t", "topic", "short", LONG, "--long", "pool")
    result = run(*arguments)
    assert result.code == 0
    rows = list(csv.DictReader(io.StringIO(result.out, newline="")))
    assert list(rows[0]) == ["text", "label", "confidence", "truncated", "windows"]
    assert rows[0]["windows"] == "1"
    assert int(rows[1]["windows"]) > 3
    assert [row["truncated"] for row in rows] == ["false", "false"]
    assert f"note: 1 text longer than {tiny.MAX_TOKENS} tokens read in windows\n" in result.err
    assert "windows" in run(*arguments, "--format", "table").out


def test_embed_on_the_command_line(run: Run, tiny_bundle: Path, embedder: Embedder) -> None:
    result = run("embed", "-b", tiny_bundle, "short", LONG, "--long", "pool")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [list(line) for line in lines] == [["text", "embedding", "truncated", "windows"]] * 2
    expected_NE = embedder.embed(["short", LONG], long_texts="pool")
    np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], np.float32), expected_NE)
    refused = run("embed", "-b", tiny_bundle, "short", "--long", "vote")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
