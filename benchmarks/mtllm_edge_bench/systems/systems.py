"""The systems that a benchmark compares, each with a `Profiler` of its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.bridge import Bridge
from mtllm_edge.backends.encoders.base import Encoder
from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.backends.llms.base import Llm
from mtllm_edge.backends.llms.llama_cpp import GgufLlm
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.classifier import Classifier
from mtllm_edge.embedder import Embedder
from mtllm_edge.inputs import Input
from mtllm_edge.tasks.head import Head
from mtllm_edge.tokenization.batching import plan_batches
from mtllm_edge.tokenization.encoding import Encoding, Spans
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge.translator import Translator, TranslatorManifest
from mtllm_edge_bench.jobs import Job, SystemName
from mtllm_edge_bench.systems.english_llm import EnglishLlm
from mtllm_edge_bench.systems.profiler import Profiler

BEAMS: dict[SystemName, int] = {"translate_test": 1, "translate_test_beam4": 4}
"""Translate-test -> beam size of its translator."""
STACKS: tuple[SystemName, ...] = ("mt_llm", "mt_llm_serial", "mt_llm_onnx")
"""The MT-LLM: in GGUF; without overlap of encoder and LLM; with its LLM in ONNX Runtime."""


class LoadedSystem(Protocol):
    """A loaded system."""

    profiler: Profiler
    engines_only: bool
    """Whether only the stages count as its time."""

    def classify(self, indices: Sequence[int]) -> list[str]:
        """Return the labels of the job's texts at these indices; none for engines alone."""


class MtLlmSystem:
    """`Classifier`, as users call it, with the LLM in the default backend or in ONNX."""

    engines_only = False

    def __init__(self, job: Job) -> None:
        """Load the bundle."""
        self._job = job
        bundle = Bundle.open(job.bundle)
        embedder = _ProfiledEmbedder.load(
            bundle,
            threads=job.threads,
            llm_backend="onnx" if job.system == "mt_llm_onnx" else bundle.manifest.llm.backend,
            batch_tokens=job.batch_tokens["stack"],
        )
        assert isinstance(embedder, _ProfiledEmbedder)
        embedder.serial = job.system == "mt_llm_serial"
        self.profiler = embedder.profiler
        heads = {name: Head.load(bundle.path, part) for name, part in bundle.manifest.tasks.items()}
        self._classifier = Classifier(embedder, heads, job.task)

    def classify(self, indices: Sequence[int]) -> list[str]:
        """Return labels; see `LoadedSystem`."""
        texts = [self._job.texts[index] for index in indices]
        return [prediction.label for prediction in self._classifier.classify(texts, language=self._job.language)]


class TranslateTest:
    """Translation into English, then the English LLM."""

    engines_only = False

    def __init__(self, job: Job) -> None:
        """Load translator and English LLM."""
        assert job.translator is not None
        assert job.english_llm is not None
        self._job, self._beam = job, BEAMS[job.system]
        self.profiler = Profiler()
        folder = Path(job.translator)
        self._translator = _ProfiledTranslator(folder, TranslatorManifest.load(folder), threads=job.threads)
        self._translator.profiler = self.profiler
        self._english_llm = EnglishLlm(Path(job.english_llm), threads=job.threads, batch_tokens=job.batch_tokens["llm"])

    def classify(self, indices: Sequence[int]) -> list[str]:
        """Return labels; see `LoadedSystem`."""
        texts = [self._job.texts[index] for index in indices]
        lengths = self._job.translation_lengths
        self._translator.lengths = None if lengths is None else [lengths[index] for index in indices]
        with self.profiler.stage("translate"):
            english = self._translator.translate(
                texts, beam_size=self._beam, batch_tokens=self._job.batch_tokens["translate"]
            )
        if self._job.translations is not None:
            english = [self._job.translations[index] for index in indices]
        with self.profiler.stage("tokenize"):
            # An empty translation cannot be embedded.
            encoded = self._english_llm.encode([text if text.strip() else "." for text in english])
        self.profiler.tokens["llm"] += sum(len(text.ids) for text in encoded)
        with self.profiler.stage("llm"):
            pooled_NE = self._english_llm.pool(encoded)
        with self.profiler.stage("head"):
            return self._english_llm.labels(self._job.task, pooled_NE)


class BareEngines:
    """The engines of an MT-LLM alone, on the same batches: without tokenizer, bridge and checks."""

    engines_only = True

    def __init__(self, job: Job) -> None:
        """Load the bundle."""
        self._job = job
        self.profiler = Profiler()
        bundle = Bundle.open(job.bundle)
        self._embedder = Embedder.load(
            bundle,
            threads=job.threads,
            llm_backend=bundle.manifest.llm.backend,
            batch_tokens=job.batch_tokens["stack"],
        )

    def classify(self, indices: Sequence[int]) -> list[str]:
        """Run encoder and LLM; returns no labels."""
        encoded = self._embedder.encode([self._job.texts[index] for index in indices], language=self._job.language)
        embedder = self._embedder
        encoder, llm = embedder._encoder, embedder._llm
        assert isinstance(encoder, CTranslate2Encoder)
        assert encoder._encoder is not None
        lengths = [len(text.ids) for text in encoded]
        for batch in plan_batches(lengths, max_tokens=embedder._tokens_per_batch, padded=llm.pads):
            ids = [encoded[index].ids for index in batch]
            with self.profiler.stage("encode"):
                encoder._encoder.forward_batch(ids)
            inputs = embedder._llm_inputs([encoded[index] for index in batch])
            run = _engine_call(llm, inputs)
            with self.profiler.stage("llm"):
                run()
            self.profiler.tokens["encoder"] += sum(map(len, ids))
            self.profiler.tokens["llm"] += sum(map(len, inputs))
        return []


def _engine_call(llm: Llm, inputs: list[NDArray[np.float32]]) -> Callable[[], object]:
    """Return the call of the engine, with its inputs prepared."""
    if isinstance(llm, GgufLlm):
        llm._batch.fill(inputs)
        return llm._decode
    from mtllm_edge.backends.llms.onnx import OnnxLlm
    from mtllm_edge.backends.onnx_session import pad
    from mtllm_edge.bundle.formats.onnx import LLM_INPUTS

    assert isinstance(llm, OnnxLlm)
    session, arrays = llm._session._session, pad(LLM_INPUTS, inputs)
    return lambda: session.run(None, arrays)


def load_system(job: Job) -> LoadedSystem:
    """Load the system of a job."""
    if job.system in STACKS:
        return MtLlmSystem(job)
    if job.system == "engines":
        return BareEngines(job)
    if job.system in BEAMS:
        return TranslateTest(job)
    # torch is slow to import, and must not count as memory of the others
    from mtllm_edge_bench.systems.pytorch import TorchStack

    return TorchStack(job)


class _ProfiledEmbedder(Embedder):
    serial = False
    """Whether every batch is a separate call, so that encoder and LLM do not overlap."""

    def __init__(
        self, bundle: Bundle, tokenizer: Tokenizer, encoder: Encoder, bridge: Bridge, llm: Llm, batch_tokens: int
    ) -> None:
        self.profiler = profiler = Profiler()
        profiled = _ProfiledBridge(bridge.weight_EK, bridge.bias_E, bridge.stride, profiler)
        super().__init__(
            bundle, tokenizer, _ProfiledEncoder(encoder, profiler), profiled, _ProfiledLlm(llm, profiler), batch_tokens
        )

    def encode(self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None) -> list[Encoding]:
        with self.profiler.stage("tokenize"):
            return super().encode(texts, language=language)

    def pool(
        self,
        encoded: Sequence[Encoding],
        *,
        task: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        if not self.serial:
            return super().pool(encoded, task=task, progress=progress)
        lengths = [len(text.ids) for text in encoded]
        pooled_NE = np.empty((len(encoded), self.bundle.manifest.llm.n_embd), np.float32)
        for batch in plan_batches(lengths, max_tokens=self._tokens_per_batch, padded=self._llm.pads):
            pooled_NE[batch] = super().pool([encoded[index] for index in batch], task=task)
        return pooled_NE


@dataclass(frozen=True)
class _ProfiledEncoder:
    inner: Encoder
    profiler: Profiler

    @property
    def pads(self) -> bool:
        return self.inner.pads

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        self.profiler.tokens["encoder"] += sum(map(len, batch))
        with self.profiler.stage("encode"):
            return self.inner.encode(batch)

    def close(self) -> None:
        self.inner.close()


@dataclass(frozen=True)
class _ProfiledBridge(Bridge):
    profiler: Profiler

    def __call__(self, hidden: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        with self.profiler.stage("bridge"):
            return super().__call__(hidden)


@dataclass(frozen=True)
class _ProfiledLlm:
    inner: Llm
    profiler: Profiler

    @property
    def pads(self) -> bool:
        return self.inner.pads

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        self.profiler.tokens["llm"] += sum(map(len, batch))
        with self.profiler.stage("llm"):
            return self.inner.pool(batch, spans, adapter=adapter)

    def close(self) -> None:
        self.inner.close()


class _ProfiledTranslator(Translator):
    """A translator that counts tokens, and can be forced to write translations of given lengths."""

    profiler: Profiler
    lengths: Sequence[int] | None = None
    """Tokens to write for each text. CTranslate2 takes one length per batch, so each batch gets the mean of its
    texts: the same number of tokens, in at most as many steps."""

    def _search(self, sources: list[list[str]], indices: list[int], **options: int) -> list[list[str]]:
        if self.lengths is not None:
            length = max(1, round(sum(self.lengths[index] for index in indices) / len(indices)))
            options |= {"min_decoding_length": length, "max_decoding_length": length}
        translations = super()._search(sources, indices, **options)
        self.profiler.tokens["encoder"] += sum(map(len, sources))
        self.profiler.tokens["written"] += sum(map(len, translations))
        return translations
