"""The ways from texts to labels that are compared, each with its stages on a `Profiler`."""

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
from mtllm_edge_bench.jobs import Job, System
from mtllm_edge_bench.systems.english_llm import EnglishLlm
from mtllm_edge_bench.systems.profiler import Profiler

BEAMS: dict[System, int] = {"translate_test": 1, "translate_test_beam4": 4}
"""Contender -> beam of its translator."""
STACKS: tuple[System, ...] = ("mt_llm", "mt_llm_serial", "mt_llm_onnx")
"""The product: as it is; with encoder and LLM in turns instead of side by side; and with its LLM in ONNX Runtime."""


class LoadedSystem(Protocol):
    """Something loaded that answers texts."""

    meter: Profiler
    bare: bool
    """Whether its stages alone are its time, and what it does between them is none of it."""

    def answer(self, places: Sequence[int]) -> list[str]:
        """Labels of the job's texts at these places; engines alone give none."""


class MtLlmSystem:
    """The product itself: `Classifier` as users call it, with its LLM in the default form, or in ONNX."""

    bare = False

    def __init__(self, job: Job) -> None:
        """Load the bundle."""
        self._job = job
        bundle = Bundle.open(job.bundle)
        embedder = _MeteredEmbedder.load(
            bundle,
            threads=job.threads,
            llm_backend="onnx" if job.system == "mt_llm_onnx" else bundle.manifest.llm.backend,
            batch_tokens=job.batch_tokens["stack"],
        )
        assert isinstance(embedder, _MeteredEmbedder)
        embedder.serial = job.system == "mt_llm_serial"
        self.meter = embedder.meter
        heads = {name: Head.load(bundle.path, part) for name, part in bundle.manifest.tasks.items()}
        self._classifier = Classifier(embedder, heads, job.task)

    def answer(self, places: Sequence[int]) -> list[str]:
        """Labels; see `LoadedSystem`."""
        texts = [self._job.texts[place] for place in places]
        return [found.label for found in self._classifier.classify(texts, language=self._job.language)]


class TranslateTest:
    """Translation into English, then the English LLM."""

    bare = False

    def __init__(self, job: Job) -> None:
        """Load translator and reader."""
        assert job.translator is not None
        assert job.reader is not None
        self._job, self._beam = job, BEAMS[job.system]
        self.meter = Profiler()
        folder = Path(job.translator)
        self._translator = _MeteredTranslator(folder, TranslatorManifest.load(folder), threads=job.threads)
        self._translator.meter = self.meter
        self._reader = EnglishLlm(Path(job.reader), threads=job.threads, batch_tokens=job.batch_tokens["llm"])

    def answer(self, places: Sequence[int]) -> list[str]:
        """Labels; see `LoadedSystem`."""
        texts = [self._job.texts[place] for place in places]
        written = self._job.written
        self._translator.lengths = None if written is None else [written[place] for place in places]
        with self.meter.stage("translate"):
            english = self._translator.translate(
                texts, beam_size=self._beam, batch_tokens=self._job.batch_tokens["translate"]
            )
        if self._job.english is not None:
            english = [self._job.english[place] for place in places]
        with self.meter.stage("tokenise"):
            # A translation may come out empty, which no LLM reads.
            encoded = self._reader.encode([text if text.strip() else "." for text in english])
        self.meter.tokens["llm"] += sum(len(text.ids) for text in encoded)
        with self.meter.stage("llm"):
            pooled_NE = self._reader.pool(encoded)
        with self.meter.stage("head"):
            return self._reader.labels(self._job.task, pooled_NE)


class BareEngines:
    """The bare engines of an MT-LLM on its own batches: no tokenizer, no bridge, no checks; LLM inputs made before."""

    bare = True

    def __init__(self, job: Job) -> None:
        """Load the bundle."""
        self._job = job
        self.meter = Profiler()
        bundle = Bundle.open(job.bundle)
        self._embedder = Embedder.load(
            bundle,
            threads=job.threads,
            llm_backend=bundle.manifest.llm.backend,
            batch_tokens=job.batch_tokens["stack"],
        )

    def answer(self, places: Sequence[int]) -> list[str]:
        """No labels: nothing is asked of a head."""
        encoded = self._embedder.encode([self._job.texts[place] for place in places], language=self._job.language)
        embedder = self._embedder
        encoder, llm = embedder._encoder, embedder._llm
        assert isinstance(encoder, CTranslate2Encoder)
        assert encoder._encoder is not None
        lengths = [len(text.ids) for text in encoded]
        for batch in plan_batches(lengths, max_tokens=embedder._tokens_per_batch, padded=llm.pads):
            ids = [encoded[place].ids for place in batch]
            with self.meter.stage("encode"):
                encoder._encoder.forward_batch(ids)
            inputs = embedder._llm_inputs([encoded[place] for place in batch])
            run = _bare(llm, inputs)
            with self.meter.stage("llm"):
                run()
            self.meter.tokens["encoder"] += sum(map(len, ids))
            self.meter.tokens["llm"] += sum(map(len, inputs))
        return []


def _bare(llm: Llm, inputs: list[NDArray[np.float32]]) -> Callable[[], object]:
    """The engine's own call, all made ready."""
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
    """Load what a job asks for."""
    if job.system in STACKS:
        return MtLlmSystem(job)
    if job.system == "engines":
        return BareEngines(job)
    if job.system in BEAMS:
        return TranslateTest(job)
    from mtllm_edge_bench.systems.pytorch import (
        TorchStack,  # torch is slow to import, and no part of the others' memory
    )

    return TorchStack(job)


class _MeteredEmbedder(Embedder):
    serial = False
    """Whether every batch is a call of its own, so that the encoder has nothing to be ahead with."""

    def __init__(
        self, bundle: Bundle, tokenizer: Tokenizer, encoder: Encoder, bridge: Bridge, llm: Llm, batch_tokens: int
    ) -> None:
        self.meter = meter = Profiler()
        metered = _MeteredBridge(bridge.weight_EK, bridge.bias_E, bridge.stride, meter)
        super().__init__(
            bundle, tokenizer, _MeteredEncoder(encoder, meter), metered, _MeteredLlm(llm, meter), batch_tokens
        )

    def encode(self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None) -> list[Encoding]:
        with self.meter.stage("tokenise"):
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
            pooled_NE[batch] = super().pool([encoded[place] for place in batch], task=task)
        return pooled_NE


@dataclass(frozen=True)
class _MeteredEncoder:
    inner: Encoder
    meter: Profiler

    @property
    def pads(self) -> bool:
        return self.inner.pads

    def encode(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        self.meter.tokens["encoder"] += sum(map(len, batch))
        with self.meter.stage("encode"):
            return self.inner.encode(batch)

    def close(self) -> None:
        self.inner.close()


@dataclass(frozen=True)
class _MeteredBridge(Bridge):
    meter: Profiler

    def __call__(self, hidden: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        with self.meter.stage("bridge"):
            return super().__call__(hidden)


@dataclass(frozen=True)
class _MeteredLlm:
    inner: Llm
    meter: Profiler

    @property
    def pads(self) -> bool:
        return self.inner.pads

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        self.meter.tokens["llm"] += sum(map(len, batch))
        with self.meter.stage("llm"):
            return self.inner.pool(batch, spans, adapter=adapter)

    def close(self) -> None:
        self.inner.close()


class _MeteredTranslator(Translator):
    """Counts tokens, and can be made to write translations of given lengths."""

    meter: Profiler
    lengths: Sequence[int] | None = None
    """Tokens to write of each text. CTranslate2 takes one length per batch, so each batch gets its texts' mean: never
    more steps than translations of these lengths take, and as many tokens."""

    def _search(self, sources: list[list[str]], indices: list[int], **options: int) -> list[list[str]]:
        if self.lengths is not None:
            length = max(1, round(sum(self.lengths[place] for place in indices) / len(indices)))
            options |= {"min_decoding_length": length, "max_decoding_length": length}
        found = super()._search(sources, indices, **options)
        self.meter.tokens["encoder"] += sum(map(len, sources))
        self.meter.tokens["written"] += sum(map(len, found))
        return found
