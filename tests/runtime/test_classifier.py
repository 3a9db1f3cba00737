"""`Classifier` and `Embedder` on the tiny bundle."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from mtllm_edge import Bundle, Classifier, Embedder, Prediction
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.embedder import TruncationWarning
from mtllm_edge.errors import DataError, EngineError, ModelError, UsageError
from tests.fixtures import tiny_bundle
from tests.fixtures.numpy_reference import bert_states, cosine, llama_pooled, read_gguf
from tests.fixtures.tiny_bundle import N_EMBD, SEED, TASKS, encoder_weights
from tests.fixtures.tolerances import LLAMA_CPP, assert_vectors_close

TEXTS = [
    "the team is good",
    "a",
    "Привет, мир! Матч был не очень хороший, но отель понравился всем.",
    "यह होटल अच्छा है",
    "这个国家的人很多",
    "a bad match " * 3,
    "الفريق جيد",
    "Η ομάδα κέρδισε",
    "z" * 500,
    "가나다",
]

MANY = [f"{'a' * number}{text}" for number in range(20) for text in TEXTS]
"""Several batches, by tokens and by texts; no text twice."""


@pytest.fixture(scope="module")
def embedder(tiny_bundle: Path) -> Iterator[Embedder]:
    with Embedder.load(tiny_bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(tiny_bundle, task="topic", threads=2) as loaded:
        yield loaded


def test_whole_stack_matches_numpy(embedder: Embedder, tiny_bundle: Path) -> None:
    encoded = embedder.encode(TEXTS)
    pooled_NE = embedder.pool(encoded)
    vocabulary = msgspec.json.decode((tiny_bundle / "encoder" / "vocabulary.json").read_bytes())
    encoder = encoder_weights(np.random.default_rng(SEED), len(vocabulary))
    bridge = safetensors.numpy.load_file(tiny_bundle / "bridge.safetensors")
    llm = read_gguf(tiny_bundle / "llm.gguf")
    for pooled_E, text in zip(pooled_NE, encoded, strict=True):
        inputs_LE = bert_states(encoder, text.ids) @ bridge["weight"].T + bridge["bias"]
        assert cosine(pooled_E, llama_pooled(llm, inputs_LE.astype(np.float32), causal=True)) >= 0.9999


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_strided_stack_matches_numpy_in_any_batch(tiny_variant: Callable[..., Path], stride: int) -> None:
    bundle = tiny_variant(stride=stride)
    vocabulary = msgspec.json.decode((bundle / "encoder" / "vocabulary.json").read_bytes())
    encoder = tiny_bundle.encoder_weights(np.random.default_rng(tiny_bundle.SEED), len(vocabulary))
    bridge = safetensors.numpy.load_file(bundle / "bridge.safetensors")
    llm = read_gguf(bundle / "llm.gguf")
    with Embedder.load(bundle, threads=2) as embedder:
        encoded = embedder.encode([*TEXTS, *("z" * length for length in range(1, 5))])
        pooled_NE = embedder.pool(encoded + embedder.encode(MANY[len(TEXTS) :]))
    assert {len(text.ids) % stride for text in encoded} == set(range(stride))
    for index, text in enumerate(encoded):
        states_LD = bert_states(encoder, text.ids)
        groups = [states_LD[first : first + stride].ravel() for first in range(0, len(states_LD), stride)]
        inputs = [bridge["weight"][:, : len(group_K)] @ group_K + bridge["bias"] for group_K in groups]
        expected_E = llama_pooled(llm, np.array(inputs, np.float32), causal=True)
        assert cosine(pooled_NE[index], expected_E) >= 0.9999


def test_batched_equals_single_in_any_order(embedder: Embedder) -> None:
    texts = MANY
    together_NE = embedder.pool(embedder.encode(texts))
    singly_NE = np.concatenate([embedder.pool(embedder.encode([text])) for text in texts])
    assert together_NE.dtype == np.float32
    assert_vectors_close(together_NE, singly_NE, LLAMA_CPP)
    shuffled = np.random.default_rng(0).permutation(len(texts))
    shuffled_NE = embedder.pool(embedder.encode([texts[index] for index in shuffled]))
    assert_vectors_close(shuffled_NE, together_NE[shuffled], LLAMA_CPP)


def test_embed_warns_of_truncation(embedder: Embedder) -> None:
    with pytest.warns(TruncationWarning, match="2 of 10 texts were truncated to 64 tokens, the first is text 2"):
        assert embedder.embed(TEXTS).shape == (10, tiny_bundle.N_EMBD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder.embed(TEXTS[:2])


def test_hundred_thousand_characters(classifier: Classifier) -> None:
    (prediction,) = classifier.classify(["хороший отель " * 7200])
    assert (prediction.tokens, prediction.truncated) == (tiny_bundle.MAX_TOKENS, True)


def test_predictions(classifier: Classifier, embedder: Embedder, tiny_bundle: Path) -> None:
    predictions = classifier.classify(TEXTS)
    weight_CE = safetensors.numpy.load_file(tiny_bundle / "tasks/topic/head.safetensors")["weight"]
    logits_NC = embedder.pool(embedder.encode(TEXTS)) @ weight_CE.T
    for prediction, logits_C, text in zip(predictions, logits_NC, embedder.encode(TEXTS), strict=True):
        assert prediction.label == classifier.labels[int(logits_C.argmax())]
        assert tuple(prediction.probabilities) == classifier.labels == TASKS["topic"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.confidence == max(prediction.probabilities.values())
        assert (prediction.tokens, prediction.truncated) == (len(text.ids), text.truncated)
    assert {prediction.label for prediction in predictions} != {predictions[0].label}  # more than one label


def test_task_of_a_call(classifier: Classifier) -> None:
    assert classifier.task == "topic"
    (prediction,) = classifier.classify(TEXTS[:1], task="sentiment")
    assert tuple(prediction.probabilities) == tiny_bundle.TASKS["sentiment"]
    with pytest.raises(UsageError, match="has no task 'topics'; it has topic, sentiment"):
        classifier.classify(TEXTS[:1], task="topics")


def test_task_of_load(tiny_bundle: Path, tiny_variant: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="has the tasks topic, sentiment; name one"):
        Classifier.load(tiny_bundle)
    with pytest.raises(UsageError, match="has no task 'x'; it has topic, sentiment"):
        Classifier.load(tiny_bundle, task="x")


def test_only_task_needs_no_name(tmp_path: Path) -> None:
    bundle = tiny_bundle.make_tiny_bundle(tmp_path / "one", tasks={"mood": ("up", "down")})
    with Classifier.load(Bundle.open(bundle)) as classifier:
        assert classifier.labels == ("up", "down")


def test_bundle_without_a_task(tmp_path: Path) -> None:
    bundle = tiny_bundle.make_tiny_bundle(tmp_path / "none", tasks={})
    with pytest.raises(UsageError, match="none has no task; use `mtllm-edge embed`"):
        Classifier.load(bundle)
    with Embedder.load(bundle) as embedder:
        assert embedder.embed(["a"]).shape == (1, tiny_bundle.N_EMBD)


def test_no_texts(classifier: Classifier, embedder: Embedder) -> None:
    assert classifier.classify([]) == []
    assert embedder.embed([]).shape == (0, tiny_bundle.N_EMBD)


def test_progress_counts_every_text(classifier: Classifier) -> None:
    counts: list[int] = []
    classifier.classify(MANY + TEXTS, progress=counts.append)
    assert sum(counts) == len(MANY + TEXTS)
    assert len(counts) > 2


def test_repeated_texts_are_computed_once(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    once_NE = embedder.embed(TEXTS[:3])
    with Embedder.load(tiny_bundle, threads=2) as other:
        batch_lengths: list[int] = []
        encode = other._encoder.encode

        def counted(batch: Sequence[Sequence[int]]) -> list[Any]:
            batch_lengths.extend(map(len, batch))
            return encode(batch)

        monkeypatch.setattr(other._encoder, "encode", counted)
        counts: list[int] = []
        repeated_NE = other.embed([TEXTS[1], TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[1]], progress=counts.append)
    assert len(batch_lengths) == 3
    assert counts == [5]
    np.testing.assert_array_equal(repeated_NE, once_NE[[1, 0, 1, 2, 1]])


def test_repeated_choices_have_the_vectors_of_their_text(embedder: Embedder) -> None:
    """The same ids with other choice spans are another input."""
    (text,) = embedder.encode(["the good team"])
    whole, parts = text, replace(text, choice_spans=((1, 3), (3, 5)))
    vectors_VE = embedder.pool([whole, parts, whole, parts])
    assert vectors_VE.shape == (6, tiny_bundle.N_EMBD)
    np.testing.assert_array_equal(vectors_VE[:3], vectors_VE[3:])
    assert np.abs(vectors_VE[0] - vectors_VE[1]).max() > 1e-3


def test_errors_of_the_encoder_thread_are_raised(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder.load(tiny_bundle, threads=2) as embedder:
        encode, calls = embedder._encoder.encode, [0]

        def failing(batch: Sequence[Sequence[int]]) -> list[Any]:
            calls[0] += 1
            if calls[0] == 3:
                raise EngineError("no memory")
            return encode(batch)

        monkeypatch.setattr(embedder._encoder, "encode", failing)
        counts: list[int] = []
        with pytest.raises(EngineError, match="no memory"):
            embedder.embed(MANY, progress=counts.append)
        assert len(counts) == 2  # the batches before the error
        assert embedder.embed(MANY).shape == (len(MANY), N_EMBD)  # and remains usable


@pytest.mark.parametrize("text", ["", "  ", "\ud800"])
def test_the_error_of_an_invalid_text_has_its_index(classifier: Classifier, text: str) -> None:
    with pytest.raises(DataError, match="text 1 "):
        classifier.classify(["good", text])


def test_a_language_does_not_change_the_probabilities(classifier: Classifier) -> None:
    (untagged,), (tagged,) = classifier.classify(["good"]), classifier.classify(["good"], language="de")
    assert (untagged.language, tagged.language) == (None, "deu_Latn")
    assert tagged.probabilities == untagged.probabilities


@pytest.mark.parametrize("threads", [0, -1, 257, 10**6])
def test_threads_must_be_positive(tiny_bundle: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads}, expected 1 to 256"):
        Embedder.load(tiny_bundle, threads=threads)


@pytest.mark.parametrize("batch_tokens", [0, -5, 2**31])
def test_batch_sizes_are_bounded(tiny_bundle: Path, batch_tokens: int) -> None:
    with pytest.raises(UsageError, match=f"batch_tokens is {batch_tokens}, expected 1 to 16384"):
        Embedder.load(tiny_bundle, threads=1, batch_tokens=batch_tokens)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_calls_after_a_fork_do_not_hang(tiny_bundle: Path) -> None:
    code = (
        "import os, sys\n"
        "from mtllm_edge import Embedder\n"
        "from mtllm_edge.errors import EngineError\n"
        "embedder = Embedder.load(sys.argv[1], threads=2)\n"
        "embedder.embed(['a'])\n"
        "if not (child := os.fork()):\n"
        "    try:\n"
        "        embedder.embed(['a'])\n"
        "    except EngineError as error:\n"
        "        os._exit(7 if 'was forked' in str(error) else 1)\n"
        "    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tiny_bundle)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.strip() == b"7"


def test_missing_head(fresh_bundle: Path) -> None:
    (fresh_bundle / "tasks/sentiment/head.safetensors").unlink()
    with pytest.raises(ModelError, match=r"tasks/sentiment/head\.safetensors: missing.*copy or export"):
        Classifier.load(fresh_bundle, task="topic")


def test_tokenizer_of_another_model(fresh_bundle: Path) -> None:
    path = fresh_bundle / "tokenizer.json"
    content = msgspec.json.decode(path.read_bytes())
    content["model"]["vocab"].append(["🦙", -1.0])
    path.write_bytes(msgspec.json.encode(content))
    tiny_bundle.write_manifest(fresh_bundle)
    with Embedder.load(fresh_bundle) as embedder, pytest.raises(ModelError, match="belongs to another model"):
        embedder.embed(["🦙"])


def test_max_tokens_of_the_manifest_exceeds_the_encoder(fresh_bundle: Path) -> None:
    manifest_path = fresh_bundle / "bundle.json"
    content = msgspec.json.decode(manifest_path.read_bytes())
    content["encoder"]["max_tokens"] = 65
    content["files"] = msgspec.to_builtins(list_files(fresh_bundle))
    manifest_path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(ModelError, match="64 positions, fewer than max_tokens 65"):
        Embedder.load(fresh_bundle)


def test_close_twice_and_use_after(tiny_bundle: Path) -> None:
    classifier = Classifier.load(tiny_bundle, task="topic")
    classifier.close()
    classifier.close()
    with pytest.raises(EngineError, match="closed; load the bundle again"):
        classifier.classify(["good"])


def test_threads_share_a_classifier(classifier: Classifier) -> None:
    expected = classifier.classify(TEXTS)
    with ThreadPoolExecutor(3) as executor:
        for predictions in executor.map(lambda _: classifier.classify(TEXTS), range(6)):
            assert predictions == expected


def test_native_libraries_print_nothing(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        classifier.classify(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_prediction_is_frozen() -> None:
    prediction = Prediction(label="a", probabilities={"a": 0.75, "b": 0.25}, tokens=3, truncated=False)
    assert prediction.confidence == 0.75
    with pytest.raises(AttributeError):
        prediction.label = "b"  # type: ignore[misc]
