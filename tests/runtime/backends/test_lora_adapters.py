"""LoRA adapters that the LLM applies for one task, compared with merged weights in NumPy."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.backends.llms.llama_cpp import GgufLlm
from mtllm_edge.bundle.manifest import MANIFEST_NAME
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.tasks.head import Head
from mtllm_edge.tasks.store import add_task, remove_task
from tests.fixtures import tiny_bundle
from tests.fixtures.cli_result import Run
from tests.fixtures.numpy_reference import cosine, llama_pooled, read_gguf
from tests.fixtures.tiny_bundle import write_llm, write_lora
from tests.fixtures.tiny_onnx import make_onnx_bundle
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close
from tests.runtime.backends.test_llama_cpp import LLM, SETTINGS, inputs

TEXTS = ["the team is good", "не хорошо", "中国 在 这 里", "a bad match"]
ALPHA, RANK = 4.0, 2


def lora(seed: int) -> dict[str, NDArray[np.float32]]:
    return tiny_bundle.lora_weights(np.random.default_rng(seed), RANK)


def merged(llm: Path, halves: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
    weights = read_gguf(llm)
    for name in weights:
        if f"{name}.lora_a" in halves:
            product = halves[f"{name}.lora_b"].astype(np.float64) @ halves[f"{name}.lora_a"]
            weights[name] = weights[name] + ALPHA / RANK * product
    return weights


def load(bundle: Path, **adapters: Path) -> GgufLlm:
    return GgufLlm(
        bundle / "llm.gguf", LLM, settings=SETTINGS, threads=1, max_tokens=256, max_texts=16, adapters=adapters
    )


@pytest.fixture
def adapted(fresh_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with the tasks `one` and `two`, each with its own adapter, and `bare` without one."""
    bundle = Bundle.open(fresh_bundle)
    weight_CE = np.random.default_rng(9).standard_normal((2, tiny_bundle.N_EMBD), dtype=np.float32)
    head = Head("sequence", ("a", "b"), weight_CE, None, 1.0)
    add_task(bundle, "bare", head)
    for seed, name in enumerate(("one", "two")):
        add_task(bundle, name, head, adapter=tiny_bundle.write_lora(tmp_path / f"{name}.gguf", lora(seed)))
    return fresh_bundle


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_adapter_equals_merged_weights(tiny_bundle: Path, tmp_path: Path, dtype: type[np.floating]) -> None:
    halves = lora(0)
    path = write_lora(tmp_path / "lora.gguf", {name: half.astype(dtype) for name, half in halves.items()})
    llm = load(tiny_bundle, mine=path)
    base_weights, merged_weights = read_gguf(tiny_bundle / "llm.gguf"), merged(tiny_bundle / "llm.gguf", halves)
    batch = inputs()
    for adapter, weights in (("mine", merged_weights), (None, base_weights), ("mine", merged_weights)):
        pooled_NE = llm.pool(batch, adapter=adapter)
        for pooled_E, inputs_LE in zip(pooled_NE, batch, strict=True):
            assert cosine(pooled_E, llama_pooled(weights, inputs_LE, causal=True)) >= 0.9999
    assert cosine(llm.pool(batch, adapter="mine"), llm.pool(batch)) < 0.99
    llm.close()


def test_two_threads_use_two_tasks(adapted: Path) -> None:
    with Classifier.load(adapted, task="bare", threads=1) as classifier:
        expected = {task: classifier.classify(TEXTS, task=task) for task in ("one", "two", "bare", "topic")}
        assert expected["one"] != expected["two"] != expected["bare"] != expected["one"]
        with ThreadPoolExecutor(4) as executor:
            jobs = [(task, executor.submit(classifier.classify, TEXTS, task=task)) for task in [*expected] * 15]
        for task, job in jobs:
            assert job.result() == expected[task]


def test_vectors_equal_those_of_a_merged_bundle(adapted: Path, tiny_bundle: Path) -> None:
    weights = {name: array.astype(np.float32) for name, array in merged(adapted / "llm.gguf", lora(1)).items()}
    with Embedder.load(adapted, threads=1) as embedder:
        encoded = embedder.encode(TEXTS)
        adapted_NE, bare_NE = embedder.pool(encoded, task="two"), embedder.pool(encoded, task="bare")
        np.testing.assert_array_equal(bare_NE, embedder.pool(encoded))
    (adapted / "llm.gguf").unlink()
    body = {name: weight for name, weight in weights.items() if name != "token_embd.weight"}
    write_llm(adapted / "llm.gguf", body)
    manifest = Bundle.open(tiny_bundle).manifest
    (adapted / "bundle.json").write_bytes(
        type(manifest)(**{**_fields(manifest), "files": list_files(adapted)}).to_json()
    )
    with Embedder.load(adapted, threads=1) as embedder:
        merged_NE = embedder.embed(TEXTS)
    for adapted_E, merged_E in zip(adapted_NE, merged_NE, strict=True):
        assert cosine(adapted_E, merged_E) >= 0.9999


def _fields(manifest: Any) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__struct_fields__}


def test_the_adapter_is_listed_and_removed_with_its_task(run: Run, adapted: Path) -> None:
    bundle = Bundle.open(adapted)
    bundle.verify()
    assert bundle.manifest.tasks["one"].adapter == "tasks/one/adapter.gguf"
    assert "with an adapter" in run("info", adapted).out
    remove_task(bundle, "one")
    Bundle.open(adapted).verify()
    assert not (adapted / "tasks" / "one").exists()
    with Classifier.load(adapted, task="two", threads=1) as classifier:
        assert len(classifier.classify(TEXTS)) == len(TEXTS)


def test_fitting_a_task_again_removes_its_adapter(adapted: Path) -> None:
    texts, labels = ["cat", "cow", "hen", "oak", "elm", "fir"], list("aaabbb")
    with Classifier.load(adapted, task="one", threads=1) as classifier:
        classifier.fit(texts, labels)
        expected_NC = classifier.predict_proba(texts)
        classifier.save_task("one", force=True)
        np.testing.assert_array_equal(classifier.predict_proba(texts), expected_NC)
    assert Bundle.open(adapted).manifest.tasks["one"].adapter is None
    with Classifier.load(adapted, task="one", threads=1) as classifier:
        assert_probabilities_close(classifier.predict_proba(texts), expected_NC, LLAMA_CPP)


def test_an_adapter_without_effect(fresh_bundle: Path, tmp_path: Path) -> None:
    halves = {name: half * np.float32(not name.endswith("lora_b")) for name, half in lora(0).items()}
    path = tiny_bundle.write_lora(tmp_path / "lora.gguf", halves)
    with pytest.raises(ModelError, match=r"lora\.gguf: the adapter does not change the LLM's vectors"):
        load(fresh_bundle, mine=path)


def test_an_unknown_adapter(tiny_bundle: Path) -> None:
    llm = load(tiny_bundle)
    with pytest.raises(UsageError, match="no adapter 'mine' was loaded"):
        llm.pool(inputs(), adapter="mine")
    llm.close()


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda halves: {key: half for key, half in halves.items() if key != name}


Q = "blk.0.attn_q.weight"
BAD: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, Any], str, str]] = {
    "no adapter": (dict, {"general.type": "model"}, "llama", "general.type is 'model', expected 'adapter'"),
    "type of no text": (dict, {"general.type": 1.0}, "llama", "general.type is 1.0, expected 'adapter'"),
    "no lora": (dict, {"adapter.type": "other"}, "llama", "adapter.type is 'other', expected 'lora'"),
    "no type": (dict, {"adapter.type": None}, "llama", "adapter.type is None"),
    "another family": (dict, {}, "gemma", "general.architecture is 'gemma', expected 'llama'"),
    "alpha of no number": (dict, {"adapter.lora.alpha": "4"}, "llama", "adapter.lora.alpha is '4'"),
    "alpha of 64 bits": (dict, {"adapter.lora.alpha": np.float64(4)}, "llama", "expected a number in float32"),
    "alpha not finite": (dict, {"adapter.lora.alpha": float("nan")}, "llama", "adapter.lora.alpha is nan"),
    "for generation": (dict, {"adapter.alora.invocation_tokens": [1]}, "llama", "is for text generation only"),
    "a lone half": (_without(f"{Q}.lora_b"), {}, "llama", f"tensor {Q}.lora_a lacks its other half"),
    "no half": (
        lambda halves: {"blk.0.attn_norm.weight": np.ones(32, np.float32)},
        {},
        "llama",
        "belongs to no matrix",
    ),
    "no such layer": (
        lambda halves: {name.replace("blk.1.", "blk.7."): half for name, half in halves.items()},
        {},
        "llama",
        "blk.7.attn_q.weight.lora_a belongs to no matrix of the LLM",
    ),
    "another width": (
        lambda halves: halves | {f"{Q}.lora_a": np.ones((RANK, 31), np.float32)},
        {},
        "llama",
        f"{Q} has halves [31, 2] and [2, 32], expected [32, r] and [r, 32]",
    ),
    "two ranks": (
        lambda halves: halves | {f"{Q}.lora_a": np.ones((3, 32), np.float32)},
        {},
        "llama",
        f"{Q} has halves [32, 3] and [2, 32]",
    ),
    "whole numbers": (lambda halves: halves | {f"{Q}.lora_a": np.ones((RANK, 32), np.int32)}, {}, "llama", "type 26"),
    "nothing": (lambda halves: {}, {}, "llama", "holds no tensors"),
}


@pytest.mark.parametrize(("change", "fields", "architecture", "message"), BAD.values(), ids=BAD)
def test_invalid_adapters_do_not_reach_llama_cpp(
    adapted: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    fields: dict[str, Any],
    architecture: str,
    message: str,
) -> None:
    path = tiny_bundle.write_lora(tmp_path / "bad.gguf", change(lora(0)), architecture=architecture, fields=fields)
    bundle = Bundle.open(adapted)
    head = Head("sequence", ("a", "b"), np.ones((2, tiny_bundle.N_EMBD), np.float32), None, 1.0)
    with pytest.raises(ModelError) as refused:
        add_task(bundle, "bad", head, adapter=path)
    assert message in str(refused.value)
    (adapted / "tasks" / "one" / "adapter.gguf").write_bytes(path.read_bytes())
    parts = _fields(bundle.manifest) | {"files": list_files(adapted)}
    (adapted / MANIFEST_NAME).write_bytes(type(bundle.manifest)(**parts).to_json())
    with pytest.raises(ModelError) as opened:
        Bundle.open(adapted)
    assert "tasks/one/adapter.gguf: " in str(opened.value)
    assert message in str(opened.value)


def test_a_file_that_is_not_gguf(adapted: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no GGUF")
    head = Head("sequence", ("a", "b"), np.ones((2, tiny_bundle.N_EMBD), np.float32), None, 1.0)
    with pytest.raises(ModelError, match=r"bad\.gguf: no GGUF file"):
        add_task(Bundle.open(adapted), "bad", head, adapter=tmp_path / "bad.gguf")
    (adapted / "llm.gguf").write_bytes(b"x" * (adapted / "llm.gguf").stat().st_size)
    with pytest.raises(ModelError) as opened:
        Bundle.open(adapted)
    assert "llm.gguf: no GGUF" in str(opened.value)
    assert "adapter.gguf" not in str(opened.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "llm.gguf",
            "names the adapter 'llm.gguf', expected tasks/....gguf",
        ),  # otherwise the LLM would not be checked as such
        ("tasks/one/head.safetensors", "expected tasks/....gguf"),
        ("tasks/three/adapter.gguf", "names the adapter 'tasks/three/adapter.gguf', which files does not list"),
    ],
)
def test_invalid_adapter_paths(adapted: Path, path: str, message: str) -> None:
    content = msgspec.json.decode((adapted / MANIFEST_NAME).read_bytes())
    content["tasks"]["one"]["adapter"] = path
    (adapted / MANIFEST_NAME).write_bytes(msgspec.json.encode(content))
    with pytest.raises(ModelError, match=re.escape(message)):
        Bundle.open(adapted)


def test_an_llm_in_onnx_supports_no_adapters(run: Run, adapted: Path, tmp_path: Path) -> None:
    halves, onnx = tmp_path / "one.gguf", tiny_bundle.make_tiny_bundle(tmp_path / "onnx")
    make_onnx_bundle(onnx)
    np.save(tmp_path / "x.npy", np.ones(1))
    head = Head("sequence", ("a", "b"), np.ones((2, tiny_bundle.N_EMBD), np.float32), None, 1.0)
    with pytest.raises(UsageError, match="has an LLM in ONNX, which supports no adapters"):
        add_task(Bundle.open(onnx), "one", head, adapter=halves)
    make_onnx_bundle(adapted)
    refused = run("classify", "-b", adapted, "-t", "bare", "x")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "task 'one' has an adapter, which needs an LLM in GGUF, found onnx" in refused.err


def test_the_command(run: Run, fresh_bundle: Path, tmp_path: Path) -> None:
    import safetensors.numpy

    tiny_bundle.write_lora(tmp_path / "lora.gguf", lora(0))
    safetensors.numpy.save_file({"weight": np.ones((2, tiny_bundle.N_EMBD), np.float32)}, tmp_path / "head.safetensors")
    arguments = ["--head", "head.safetensors", "--label", "a", "--label", "b", "--adapter"]
    assert run("task", "add", fresh_bundle, "mood", *arguments, "lora.gguf").code == 0
    assert Bundle.open(fresh_bundle).manifest.tasks["mood"].adapter == "tasks/mood/adapter.gguf"
    refused = run("task", "add", fresh_bundle, "more", *arguments, "none.gguf")
    assert (refused.code, refused.err) == (2, "error: none.gguf is no file; name a LoRA in GGUF\n")
