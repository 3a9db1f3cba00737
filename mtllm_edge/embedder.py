"""Pipeline of the stack: texts -> tokens -> encoder -> bridge -> LLM body -> pooled vectors."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.bridge import Bridge
from mtllm_edge.backends.cpu import check_threads, default_threads
from mtllm_edge.backends.encoders.base import Encoder
from mtllm_edge.backends.llms.base import Llm
from mtllm_edge.backends.loading import load_encoder, load_llm
from mtllm_edge.backends.prefetch import prefetch
from mtllm_edge.backends.probing.gpu import ON_CPU, GpuLayers, Offload, check_gpu_layers, plan_offload
from mtllm_edge.backends.probing.llm_backend import choose_backend
from mtllm_edge.bundle.manifest import BRIDGE_NAME, TOKENIZER_NAME, LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import EngineError, UsageError
from mtllm_edge.inputs import Input, check_kind
from mtllm_edge.tokenization.batching import TOKENS_PER_BATCH, plan_batches
from mtllm_edge.tokenization.encoding import Encoding, deduplicate, downsample_spans
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge.tokenization.windows import LongTexts, Windows, check_long_texts

MAX_BATCH_TOKENS = 2**14
"""Upper limit: llama.cpp's working memory grows with the square, to half a gigabyte here and 2 TB at a million."""


class TruncationWarning(UserWarning):
    """Some texts were longer than the encoder takes and were truncated."""


class Embedder:
    """Sentence embeddings from a bundle; safe to use from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: Tokenizer,
        encoder: Encoder,
        bridge: Bridge,
        llm: Llm,
        batch_tokens: int = TOKENS_PER_BATCH,
    ) -> None:
        """Combine loaded parts; use `Embedder.load`."""
        self.bundle = bundle
        self._tokenizer, self._encoder, self._bridge, self._llm = tokenizer, encoder, bridge, llm
        self._tokens_per_batch = batch_tokens
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
        """Load a bundle. The first load on a machine takes some seconds more: a child process tries the LLM backends.

        Args:
            bundle: The bundle, its folder, or the name of an installed one.
            threads: CPU threads of the engines; None takes the cores available to this process, at most 8.
            llm_backend: LLM backend, ``gguf`` or ``onnx``; None takes the only one, or the better one on this machine.
            gpu_layers: Layers of the LLM on a GPU, or ``all``; the encoder is then placed there, too.
            batch_tokens: Maximum tokens of a batch, but at least the longest text.

        Warns:
            GpuWarning: A GPU was requested, and a part of the bundle runs on the CPU.

        Raises:
            UsageError: `bundle` is not a folder or lacks the backend, `threads`, `gpu_layers` or `batch_tokens` is out
                of bounds, or the extra [onnx] is required.
            ModelError: The bundle is incomplete or damaged.
            EngineError: An engine is missing, or refuses the model.
        """
        threads = default_threads() if threads is None else threads
        check_threads(threads)
        gpu_layers = check_gpu_layers(gpu_layers)
        if not 1 <= batch_tokens <= MAX_BATCH_TOKENS:
            raise UsageError(f"batch_tokens is {batch_tokens}, expected 1 to {MAX_BATCH_TOKENS}")
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        tokenizer = load_tokenizer(bundle)
        bridge = Bridge.load(bundle.path / BRIDGE_NAME, stride=bundle.manifest.bridge.stride)
        batch_tokens = max(batch_tokens, bundle.manifest.encoder.max_tokens)  # the longest text fits
        offload, engines = plan_offload(bundle, gpu_layers, llm_backend), None
        if not offload.is_none:
            try:
                engines = _load_engines(bundle, llm_backend, threads, batch_tokens, offload)
            except EngineError as error:  # the memory that the trial used may be in use now
                offload = Offload(faults=(("LLM", str(error)),))
        encoder, llm = engines or _load_engines(bundle, llm_backend, threads, batch_tokens, ON_CPU)
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
        """Return the vectors of texts.

        Args:
            texts: Texts in languages of the encoder.
            language: Code or name of the language of all texts, or one for each; ``auto`` identifies it (extra
                [lang]). Required by encoders with language tokens.
            long_texts: Treatment of texts longer than the encoder takes: ``cut`` drops their ends, as in training;
                ``pool`` reads them in windows and averages the windows' vectors by their tokens.
            progress: Called after every batch with the number of texts in it.

        Returns:
            float32 (texts, n_embd), in the order of `texts`.

        Warns:
            TruncationWarning: Some texts were truncated.
            LanguageWarning: A text is encoded with a related language, since the encoder lacks its own.

        Raises:
            DataError: A text is empty or not a string.
            UsageError: The language is missing or unknown, or `long_texts` is invalid.
            EngineError: An engine failed.
        """
        check_long_texts(long_texts, "sequence", "the embedder")
        windows = self.windows(texts, language=language, long_texts=long_texts)
        check_kind(texts, "sequence", "the embedder")
        warn_truncated(windows.encodings, self.bundle.manifest.encoder.max_tokens)
        return windows.mean(self.pool(windows.encodings, progress=windows.text_progress(progress)))

    def encode(self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None) -> list[Encoding]:
        """Tokenize texts, pairs, or texts with choices. Arguments and errors as for `embed`."""
        self._check_process()
        return self._tokenizer.encode(texts, language=language)

    def windows(
        self,
        texts: Sequence[Input],
        *,
        language: str | Sequence[str | None] | None = None,
        long_texts: LongTexts = "cut",
    ) -> Windows:
        """Tokenize inputs into windows, whose `encodings` are for `pool`.

        With ``cut``, each input is one window; with ``pool``, inputs must be single texts (DataError otherwise). Other
        arguments and errors as for `embed`.
        """
        if long_texts == "cut":
            encodings = self.encode(texts, language=language)
            return Windows(encodings, [1] * len(encodings))
        self._check_process()
        encodings = self._tokenizer.encode(texts, language=language, truncate=False)
        check_kind(texts, "sequence", "a reading in windows")
        return self._tokenizer.windows(encodings)

    def pool(
        self,
        encodings: Sequence[Encoding],
        *,
        task: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Return the vectors of encodings, float32 (vectors, n_embd), in their order. Errors as for `embed`.

        A text or a pair gives one vector, a text with choices one for each choice. Repeated encodings are computed
        once. The encoder runs one batch ahead of the LLM. The adapter of `task`, if it has one, is applied to the LLM.
        """
        self._check_process()
        adapter = None if task is None or self.bundle.manifest.tasks[task].adapter is None else task
        distinct, inverse = deduplicate(encodings)
        copies = Counter(inverse)
        lengths = [len(encoding.ids) for encoding in distinct]
        padded = self._llm.pads or self._encoder.pads
        batches = plan_batches(lengths, max_tokens=self._tokens_per_batch, padded=padded)
        pooled: dict[int, NDArray[np.float32]] = {}
        for batch, inputs in prefetch(lambda batch: self._llm_inputs([distinct[index] for index in batch]), batches):
            spans = [downsample_spans(distinct[index].choice_spans, self._bridge.stride) for index in batch]
            pooled_VE = self._llm.pool(inputs, spans, adapter=adapter)
            ends = np.cumsum([distinct[index].vector_count for index in batch])
            pooled |= zip(batch, np.split(pooled_VE, ends[:-1]), strict=True)
            if progress is not None:
                progress(sum(copies[index] for index in batch))
        empty_VE = np.empty((0, self.bundle.manifest.llm.n_embd), np.float32)
        return np.concatenate([empty_VE, *(pooled[index] for index in inverse)])

    def _llm_inputs(self, batch: Sequence[Encoding]) -> list[NDArray[np.float32]]:
        """LLM inputs of each text, (length / stride, n_embd)."""
        return self._bridge(self._encoder.encode([encoding.ids for encoding in batch]))

    def _check_process(self) -> None:
        """Refuse a forked process: it lacks the engines' threads, and a call would wait for them forever."""
        if os.getpid() != self._process:
            raise EngineError("the engines were loaded before this process was forked; load the bundle in each process")

    def close(self) -> None:
        """Free the engines' memory; may be called repeatedly."""
        self._encoder.close()
        self._llm.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def warn_truncated(encodings: Sequence[Encoding], max_tokens: int) -> None:
    """Warn of truncated texts, at the caller's caller."""
    truncated = [index for index, encoding in enumerate(encodings) if encoding.truncated]
    if truncated:
        message = (
            f"{len(truncated)} of {len(encodings)} texts were truncated to {max_tokens} tokens, "
            f"the first is text {truncated[0]}"
        )
        warnings.warn(message, TruncationWarning, stacklevel=3)


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """Load the tokenizer of a bundle's encoder; raises ModelError if it is damaged or belongs to another model."""
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
    """Load encoder and LLM for batches of `max_tokens` encoder tokens; an LLM with layers on a GPU is in GGUF."""
    encoder = load_encoder(bundle, threads=threads, device=offload.encoder)
    if offload.llm is not None:
        spec = bundle.llm("gguf")
    else:
        spec = choose_backend(bundle, threads).llm if llm_backend is None else bundle.llm(llm_backend)
    return encoder, load_llm(bundle, spec, threads=threads, max_tokens=max_tokens, settings=offload.llm)
