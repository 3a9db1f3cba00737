"""The stack as a pipeline: texts -> tokens -> encoder -> bridge -> LLM body -> pooled vectors."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.bridge import Bridge
from mtllm_edge.backends.cpu import check_threads, default_threads
from mtllm_edge.backends.encoders.base import Encoder
from mtllm_edge.backends.llms.base import Llm
from mtllm_edge.backends.loading import load_encoder, load_llm
from mtllm_edge.backends.prefetch import prefetch
from mtllm_edge.backends.probing.llm_backend import choose_backend
from mtllm_edge.backends.probing.offload import ON_CPU, GpuLayers, Offload, check_gpu_layers, plan_offload
from mtllm_edge.bundle.manifest import BRIDGE_NAME, TOKENIZER_NAME, LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import EngineError, UsageError
from mtllm_edge.inputs import Input, check_kind
from mtllm_edge.tokenization.batching import TOKENS_PER_BATCH, plan_batches
from mtllm_edge.tokenization.encoding import Encoding, deduplicate, downsample_spans
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge.tokenization.windows import LongTexts, Windows, check_long_texts

MAX_BATCH_TOKENS = 2**14
"""llama.cpp's working memory grows with the square: half a gigabyte here, and 2 TB at a million."""


class TruncationWarning(UserWarning):
    """Some texts were longer than the encoder takes and were cut at the end."""


class Embedder:
    """Sentence vectors from a bundle; one object may serve several threads."""

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: Tokenizer,
        encoder: Encoder,
        bridge: Bridge,
        llm: Llm,
        batch_tokens: int = TOKENS_PER_BATCH,
    ) -> None:
        """Join loaded parts; use `Embedder.load`."""
        self.bundle = bundle
        self._tokenizer, self._encoder, self._bridge, self._llm = tokenizer, encoder, bridge, llm
        self._tokens_per_batch = _tokens_per_batch(bundle, batch_tokens)
        self._process = os.getpid()

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        threads: int | None = None,
        llm_backend: LlmBackend | None = None,
        gpu_layers: GpuLayers = 0,
        batch_tokens: int = TOKENS_PER_BATCH,
    ) -> Embedder:
        """Load a bundle.

        The first time on a machine a child process tries a GGUF LLM for a few seconds (see
        `mtllm_edge.backends.probing.llama_cpp`), and
        if the bundle has a form for ONNX Runtime, too, how much faster that is (see
        `mtllm_edge.backends.probing.llm_backend`).

        Args:
            bundle: The bundle, its folder, or the name of an installed one.
            threads: CPU threads of the engines; None takes the cores open to this process, at most 8.
            llm_backend: Form of the LLM, ``gguf`` or ``onnx``; None takes the only one, or the better one here.
            gpu_layers: Layers of the LLM that go to a GPU, or ``all``; the encoder goes along (see
                `mtllm_edge.backends.probing.offload`).
            batch_tokens: Most tokens that the engines read at once; the longest text always fits.

        Warns:
            GpuWarning: A GPU was asked for, and something runs on the CPU all the same.

        Raises:
            UsageError: `bundle` is no folder or lacks the form, `threads`, `gpu_layers` or `batch_tokens` is out of
                bounds, or encoder or LLM need the extra [onnx].
            ModelError: The bundle is incomplete or damaged.
            EngineError: An engine is missing or refuses.
        """
        threads = default_threads() if threads is None else threads
        check_threads(threads)
        gpu_layers = check_gpu_layers(gpu_layers)
        if not 1 <= batch_tokens <= MAX_BATCH_TOKENS:
            raise UsageError(f"batch_tokens is {batch_tokens}, expected 1 to {MAX_BATCH_TOKENS}")
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        tokenizer = load_tokenizer(bundle)
        bridge = Bridge.load(bundle.path / BRIDGE_NAME, stride=bundle.manifest.bridge.stride)
        room = _tokens_per_batch(bundle, batch_tokens)
        offload, engines = plan_offload(bundle, gpu_layers, llm_backend), None
        if not offload.is_none:
            try:
                engines = _load_engines(bundle, llm_backend, threads, room, offload)
            except EngineError as error:  # the memory that a trial had may be taken by now
                offload = Offload(faults=(("LLM", str(error)),))
        encoder, llm = engines or _load_engines(bundle, llm_backend, threads, room, ON_CPU)
        offload.warn()
        return cls(bundle, tokenizer, encoder, bridge, llm, batch_tokens)

    def embed(
        self,
        texts: Sequence[str],
        *,
        language: str | Sequence[str | None] | None = None,
        long_texts: LongTexts = "cut",
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Vectors of texts.

        Args:
            texts: The texts, in any languages that the encoder knows.
            language: Code or name of the language of all of them, or one for each; ``auto`` identifies it (extra
                [lang]). Encoders with language tokens must be told.
            long_texts: What becomes of texts that are longer than the encoder takes: ``cut`` loses their ends, as in
                training; ``pool`` reads them in windows, whose vectors are averaged by their tokens.
            progress: Called after every batch with the number of texts in it.

        Returns:
            float32 (texts, n_embd), in the order of `texts`.

        Warns:
            TruncationWarning: Some texts were cut.
            LanguageWarning: Some are read as another language than their own.

        Raises:
            DataError: A text is empty or not a string.
            UsageError: The language is missing or unknown, or `long_texts` is neither of the two.
            EngineError: An engine failed.
        """
        check_long_texts(long_texts, "sequence", "the embedder")
        windows = self.windows(texts, language=language, long_texts=long_texts)
        check_kind(texts, "sequence", "the embedder")
        warn_truncated(windows.encodings, self.bundle.manifest.encoder.max_tokens)
        return windows.mean(self.pool(windows.encodings, progress=windows.text_progress(progress)))

    def encode(self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None) -> list[Encoding]:
        """Tokenize texts, pairs, or texts with choices (see `mtllm_edge.inputs`).

        Each result says whether its text was cut, and what language it is read as. Arguments and errors as for `embed`.
        """
        self._check_process()
        return self._tokenizer.encode(texts, language=language)

    def windows(
        self,
        texts: Sequence[Input],
        *,
        language: str | Sequence[str | None] | None = None,
        long_texts: LongTexts = "cut",
    ) -> Windows:
        """The same in windows, whose `encoded` is for `pool`: one for every text where long ones are cut.

        Otherwise no text is cut, and all must be single ones (DataError). Other arguments and errors as for `embed`.
        """
        if long_texts == "cut":
            encoded = self.encode(texts, language=language)
            return Windows(encoded, [1] * len(encoded))
        self._check_process()
        whole = self._tokenizer.encode(texts, language=language, truncate=False)
        check_kind(texts, "sequence", "a reading in windows")
        return self._tokenizer.windows(whole)

    def pool(
        self,
        encoded: Sequence[Encoding],
        *,
        task: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Vectors of what `encode` returned, in its order, float32 (vectors, n_embd). Errors as for `embed`.

        A text or a pair gives one vector, a text with choices one for every choice. Texts that come several times are
        read once. The encoder is a batch ahead of the LLM. Where the named task of the bundle has an adapter, the LLM
        wears it.
        """
        self._check_process()
        adapter = None if task is None or self.bundle.manifest.tasks[task].adapter is None else task
        read, places = deduplicate(encoded)
        copies = Counter(places)
        lengths = [len(text.ids) for text in read]
        padded = self._llm.pads or self._encoder.pads
        batches = plan_batches(lengths, max_tokens=self._tokens_per_batch, padded=padded)
        pooled: dict[int, NDArray[np.float32]] = {}
        for batch, inputs in prefetch(lambda batch: self._llm_inputs([read[place] for place in batch]), batches):
            spans = [downsample_spans(read[place].choice_spans, self._bridge.stride) for place in batch]
            pooled_VE = self._llm.pool(inputs, spans, adapter=adapter)
            ends = np.cumsum([read[place].vector_count for place in batch])
            pooled |= zip(batch, np.split(pooled_VE, ends[:-1]), strict=True)
            if progress is not None:
                progress(sum(copies[place] for place in batch))
        none_VE = np.empty((0, self.bundle.manifest.llm.n_embd), np.float32)
        return np.concatenate([none_VE, *(pooled[place] for place in places)])

    def _llm_inputs(self, batch: Sequence[Encoding]) -> list[NDArray[np.float32]]:
        """What the LLM reads of each text: (length / stride, n_embd)."""
        hidden = self._encoder.encode([text.ids for text in batch])  # each (length, d_model)
        return self._bridge(hidden)

    def _check_process(self) -> None:
        """A fork leaves the engines' threads behind, and a call would wait for them for ever."""
        if os.getpid() != self._process:
            raise EngineError("the engines were loaded before this process was forked; load the bundle in each process")

    def close(self) -> None:
        """Give the engines' memory back; harmless when repeated."""
        self._encoder.close()
        self._llm.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def warn_truncated(encoded: Sequence[Encoding], max_tokens: int) -> None:
    """Warn the caller's caller of texts that were cut."""
    cut = [index for index, text in enumerate(encoded) if text.truncated]
    if cut:
        message = (
            f"{len(cut)} of {len(encoded)} texts lost their end after {max_tokens} tokens, the first is text {cut[0]}"
        )
        warnings.warn(message, TruncationWarning, stacklevel=3)


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a bundle's encoder.

    Raises:
        ModelError: It is damaged, or another model's.
    """
    encoder = bundle.manifest.encoder
    return Tokenizer(
        bundle.path / TOKENIZER_NAME,
        prefix_tokens=encoder.prefix_tokens,
        suffix_tokens=encoder.suffix_tokens,
        max_tokens=encoder.max_tokens,
        languages=bundle.manifest.languages,
        use_sentencepiece=True,
    )


def _load_engines(
    bundle: Bundle, llm_backend: LlmBackend | None, threads: int, max_tokens: int, offload: Offload
) -> tuple[Encoder, Llm]:
    """Encoder and LLM, in batches of `max_tokens` encoder states. An LLM with layers on a GPU is in GGUF."""
    encoder = load_encoder(bundle, threads=threads, device=offload.encoder)
    if offload.llm is not None:
        form = bundle.llm("gguf")
    else:
        form = choose_backend(bundle, threads).llm if llm_backend is None else bundle.llm(llm_backend)
    llm = load_llm(bundle, form, threads=threads, max_tokens=max_tokens, settings=offload.llm)
    return encoder, llm


def _tokens_per_batch(bundle: Bundle, asked: int) -> int:
    """The longest text must fit into a batch. The encoder's tokens count: a strided bridge makes fewer for the LLM."""
    return max(asked, bundle.manifest.encoder.max_tokens)
