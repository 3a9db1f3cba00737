"""The LLM body in llama.cpp, fed with embeddings: beside `devices`, the only file that touches `llama_cpp`.

llama.cpp ends the process where an assertion fails, so everything that could reach one is checked before each call.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.cpu import check_threads, configure_openmp
from mtllm_edge.backends.llms.pooling import check_inputs, check_spans, span_means
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.bundle import manifest
from mtllm_edge.errors import EngineError, ModelError, UsageError
from mtllm_edge.safe_text import one_line
from mtllm_edge.tokenization.batching import TEXTS_PER_BATCH, TOKENS_PER_BATCH
from mtllm_edge.tokenization.encoding import Spans

# libgomp reads its environment when the library is loaded. Its default is to spin at barriers, and one other busy
# process on the same cores then takes throughput from about 600 to 17 tokens per second.
configure_openmp()
import llama_cpp  # noqa: E402

_MAX_TEXTS, _MAX_TOKENS = 256, 2**16  # LLAMA_MAX_SEQ; beyond, working memory is terabytes
_NO_ADAPTERS: Mapping[str, Path] = MappingProxyType({})
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR as ggml.h counts; the binding's own table of levels is out of date
_NO_GPUS = (ctypes.c_void_p * 1)(None)  # as llama.cpp reads "none"; it lives as long as who may read it
_last_errors: deque[str] = deque(maxlen=8)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _: object) -> None:
    """Keep llama.cpp's error lines to quote, and show nothing; must live as long as the process."""
    if level == _LOG_ERROR and text.strip():
        _last_errors.append(one_line(text.decode("utf-8", errors="replace")))


llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


class GgufLlm:
    """One llama.cpp context, used again for every batch; a lock lets several threads share it."""

    pads = False

    def __init__(
        self,
        path: Path,
        expected: manifest.LlmSpec,
        *,
        settings: EngineSettings,
        threads: int,
        max_tokens: int = TOKENS_PER_BATCH,
        max_texts: int = TEXTS_PER_BATCH,
        adapters: Mapping[str, Path] = _NO_ADAPTERS,
    ) -> None:
        """Load a headless GGUF.

        Args:
            path: The file, whose header has been checked.
            expected: The manifest's word on it.
            settings: What is safe on this machine.
            threads: CPU threads.
            max_tokens: Most tokens in a batch.
            max_texts: Most texts in a batch.
            adapters: LoRA files by the names that `pool` knows them by; their headers have been checked.

        Raises:
            UsageError: A number of threads, tokens or texts that llama.cpp cannot have.
            ModelError: The loaded model is not the one that the manifest describes, or an adapter changes nothing.
            EngineError: llama.cpp refuses the file or lacks the memory.
        """
        check_threads(threads)
        if not (1 <= max_texts <= _MAX_TEXTS and 1 <= max_tokens <= _MAX_TOKENS):
            raise UsageError(
                f"batches of {max_texts} texts and {max_tokens} tokens, expected up to {_MAX_TEXTS} and {_MAX_TOKENS}"
            )
        self._path, self._n_embd, self._max_texts = path, expected.n_embd, max_texts
        self._process = os.getpid()
        self._lock = threading.Lock()
        handles: dict[str, Any] = {}
        self._handles = handles
        self._free = weakref.finalize(self, _free, handles)
        _last_errors.clear()
        handles["model"] = llama_cpp.llama_model_load_from_file(os.fsencode(path), _model_parameters(settings))
        if not handles["model"]:
            raise EngineError(f"{path}: llama.cpp cannot load it{_quoted()}; see `mtllm-edge doctor`")
        loaded = (llama_cpp.llama_model_n_embd(handles["model"]), llama_cpp.llama_model_n_layer(handles["model"]))
        if loaded != (expected.n_embd, expected.n_layer):
            self.close()
            raise ModelError(
                f"{path}: width and layers are {loaded}, the manifest says {(expected.n_embd, expected.n_layer)}; "
                "export the bundle again"
            )
        self._adapters: dict[str, Any] = {}
        for name, adapter in adapters.items():  # before the context, whose graph makes room for them
            self._adapters[name] = llama_cpp.llama_adapter_lora_init(handles["model"], os.fsencode(adapter))
            if not self._adapters[name]:
                self.close()
                raise EngineError(f"{adapter}: llama.cpp cannot load it{_quoted()}; export the adapter again")
        parameters = _context_parameters(expected, settings, threads, max_tokens, max_texts)
        handles["context"] = llama_cpp.llama_init_from_model(handles["model"], parameters)
        if not handles["context"]:
            self.close()
            raise EngineError(f"{path}: llama.cpp cannot make a context{_quoted()}; see `mtllm-edge doctor`")
        # llama.cpp's graph of Gemma 2 scales whatever it is given; torch scales the LLM's own tokens only.
        graph_scale = math.sqrt(expected.n_embd) if expected.architecture == "gemma2" else 1.0
        self._batch = _Batch(max_tokens, expected.n_embd, divisor=graph_scale)
        self._try_adapters(adapters)

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Means over the final states; arguments and result as for `mtllm_edge.backends.llms.base.Llm.pool`.

        Raises:
            UsageError: No such adapter was loaded.
            EngineError: The batch does not fit, holds numbers that are not finite, llama.cpp failed, or it is closed.
        """
        if adapter is not None and adapter not in self._adapters:
            raise UsageError(f"{self._path}: no adapter {adapter!r} was loaded; load the bundle again")
        if not batch:
            return np.empty((0, self._n_embd), np.float32)
        with self._lock:
            self._check_open()
            self._check(batch)
            check_spans(spans, [len(inputs_LE) for inputs_LE in batch], path=self._path)
            self._activate_adapter(adapter)
            self._batch.fill(batch)
            states_TE = self._decode()
        return self._means(states_TE, [len(inputs_LE) for inputs_LE in batch], spans or [()] * len(batch))

    def pool_tokens(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Means over the final states of texts in the LLM's own tokens, where the file has their embeddings.

        Args:
            batch: Token ids of each text.

        Returns:
            (texts, n_embd).

        Raises:
            ModelError: An id is not in the file's vocabulary; a headless file has but a stub of one.
            EngineError: As for `pool`.
        """
        if not batch:
            return np.empty((0, self._n_embd), np.float32)
        lengths = [len(ids) for ids in batch]
        with self._lock:
            self._check_open()
            self._check_lengths(lengths)
            if not all(isinstance(index, int | np.integer) for ids in batch for index in ids):
                raise ModelError(f"{self._path}: token ids that are no whole numbers")
            lowest, highest = min(map(min, batch)), max(map(max, batch))
            rows = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._handles["model"]))
            if lowest < 0 or highest >= rows:
                raise ModelError(
                    f"{self._path}: token id {lowest if lowest < 0 else highest}, but the file knows {rows} tokens"
                )
            self._activate_adapter(None)
            self._batch.fill_tokens(batch)
            states_TE = self._decode()
        return self._means(states_TE, lengths, [()] * len(batch))

    def close(self) -> None:
        """Give the memory back; harmless when repeated."""
        with self._lock:
            self._free()

    def _activate_adapter(self, adapter: str | None) -> None:
        """Set the adapter of the calls that follow; llama.cpp does nothing where it is the same."""
        worn = [] if adapter is None else [self._adapters[adapter]]
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * len(worn))(
            *(ctypes.cast(handle, llama_cpp.llama_adapter_lora_p_ctypes) for handle in worn)
        )
        scales = (ctypes.c_float * len(worn))(*[1.0] * len(worn))
        status = llama_cpp.llama_set_adapters_lora(self._handles["context"], handles, len(worn), scales)
        if status != 0:
            raise EngineError(f"{self._path}: llama.cpp failed to set the adapter {adapter!r} (status {status})")

    def _try_adapters(self, adapters: Mapping[str, Path]) -> None:
        """Refuse an adapter that leaves the vectors as they are: it was not applied, or is empty."""
        if not adapters:
            return
        inputs_LE = np.random.default_rng(0).normal(0, 0.05, (4, self._n_embd)).astype(np.float32)
        bare_1E = self.pool([inputs_LE])
        for name, path in adapters.items():
            if np.array_equal(self.pool([inputs_LE], adapter=name), bare_1E):
                self.close()
                raise ModelError(f"{path}: the adapter does not change the LLM's vectors; export it again")

    def _check_open(self) -> None:
        if not self._free.alive:
            raise EngineError(f"{self._path}: the LLM is closed; load the bundle again")
        if os.getpid() != self._process:
            raise EngineError(
                f"{self._path}: the LLM was loaded before this process was forked; load it in each process"
            )

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        if len(lengths) > self._max_texts:
            raise EngineError(f"{self._path}: a batch of {len(lengths)} texts, {self._max_texts} at most fit")
        if not all(lengths):
            raise EngineError(f"{self._path}: a text without tokens reached the LLM; report this as a bug")
        if sum(lengths) > self._batch.capacity:
            raise EngineError(f"{self._path}: a batch of {sum(lengths)} tokens, {self._batch.capacity} at most fit")

    def _check(self, batch: Sequence[NDArray[np.float32]]) -> None:
        check_inputs(batch, n_embd=self._n_embd, path=self._path)
        self._check_lengths([len(inputs_LE) for inputs_LE in batch])

    def _decode(self) -> NDArray[np.float32]:
        """Final states, (tokens, n_embd), of what the batch holds."""
        context = self._handles["context"]
        _last_errors.clear()
        memory = llama_cpp.llama_get_memory(context)
        if memory:
            llama_cpp.llama_memory_clear(memory, False)
            status = llama_cpp.llama_decode(context, self._batch.struct)
        else:  # architectures made for bidirectional attention keep no memory
            status = llama_cpp.llama_encode(context, self._batch.struct)
        if status != 0:
            raise EngineError(
                f"{self._path}: llama.cpp failed with status {status}{_quoted()}; see `mtllm-edge doctor`"
            )
        states = llama_cpp.llama_get_embeddings(context)
        if not states:
            raise EngineError(f"{self._path}: llama.cpp returned no states; see `mtllm-edge doctor`")
        return np.array(np.ctypeslib.as_array(states, (self._batch.struct.n_tokens, self._n_embd)), np.float32)

    def _means(
        self, states_TE: NDArray[np.float32], lengths: Sequence[int], spans: Sequence[Spans]
    ) -> NDArray[np.float32]:
        """Means over the spans of each text, or over the whole of it."""
        if not np.isfinite(states_TE).all():
            raise EngineError(f"{self._path}: llama.cpp returned numbers that are not finite; see `mtllm-edge doctor`")
        return span_means(np.split(states_TE, np.cumsum(lengths)[:-1]), spans)


class _Batch:
    """A `llama_batch` over numpy arrays, filled again for every call without a loop over tokens."""

    def __init__(self, capacity: int, n_embd: int, *, divisor: float) -> None:
        """Make room; embeddings are divided by `divisor` on their way in."""
        self.capacity, self._divisor = capacity, divisor
        self._embeddings_TE = np.zeros((capacity, n_embd), np.float32)
        self._tokens_T = np.zeros(capacity, np.int32)
        self._positions_T = np.zeros(capacity, np.int32)
        self._sequences_T = np.zeros(capacity, np.int32)
        self._ones_T = np.ones(capacity, np.int32)  # every token belongs to one sequence
        self._outputs_T = np.ones(capacity, np.int8)  # the means are over all of them
        # llama.cpp wants a pointer to each token's sequence ids; the addresses never change.
        stride = self._sequences_T.itemsize
        self._pointers_T = (self._sequences_T.ctypes.data + stride * np.arange(capacity)).astype(np.uintp)
        self.struct = llama_cpp.llama_batch(n_tokens=0, token=None)
        self._point_to(pos=self._positions_T, n_seq_id=self._ones_T, seq_id=self._pointers_T, logits=self._outputs_T)

    def fill(self, batch: Sequence[NDArray[np.float32]]) -> None:
        self._place([len(inputs_LE) for inputs_LE in batch])
        embeddings_TE = self._embeddings_TE[: self.struct.n_tokens]
        np.concatenate(list(batch), out=embeddings_TE)
        if self._divisor != 1.0:
            embeddings_TE /= self._divisor
        self._point_to(embd=self._embeddings_TE, token=None)

    def fill_tokens(self, batch: Sequence[Sequence[int]]) -> None:
        self._place([len(ids) for ids in batch])
        self._tokens_T[: self.struct.n_tokens] = np.concatenate([np.asarray(ids, np.int32) for ids in batch])
        self._point_to(embd=None, token=self._tokens_T)

    def _place(self, lengths: Sequence[int]) -> None:
        """Positions and sequences of texts of these lengths."""
        lengths_N = np.array(lengths)
        n_tokens = int(lengths_N.sum())
        begins_N = np.cumsum(lengths_N) - lengths_N
        self._positions_T[:n_tokens] = np.arange(n_tokens) - np.repeat(begins_N, lengths_N)
        self._sequences_T[:n_tokens] = np.repeat(np.arange(len(lengths)), lengths_N)
        self.struct.n_tokens = n_tokens

    def _point_to(self, **arrays: NDArray[Any] | None) -> None:
        """Set the struct's pointers; None is a null pointer."""
        types = dict(llama_cpp.llama_batch._fields_)
        for name, array in arrays.items():
            setattr(self.struct, name, None if array is None else ctypes.cast(array.ctypes.data, types[name]))


def _model_parameters(settings: EngineSettings) -> Any:
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = settings.gpu_layers
    if not settings.gpu_layers:
        parameters.devices = ctypes.addressof(_NO_GPUS)
    parameters.use_extra_bufts = settings.extra_buffers
    return parameters


def _context_parameters(
    llm: manifest.LlmSpec, settings: EngineSettings, threads: int, max_tokens: int, max_texts: int
) -> Any:
    parameters = llama_cpp.llama_context_default_params()
    # One micro-batch holds the whole batch: where attention is bidirectional, one that is cut in two would be wrong.
    # llama.cpp pads it to a multiple of the sequence count and ends the process where the two differ (514 with 64 did).
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = -(-max_tokens // max_texts) * max_texts
    parameters.n_seq_max = max_texts
    # Without it, llama.cpp splits a batch of unequal lengths, and its own means were silently wrong.
    parameters.kv_unified = True
    parameters.embeddings = True
    # The states as they are: llama.cpp's own means are over whole sequences, and a choice is a piece of one.
    parameters.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
    bidirectional = llm.attention == "bidirectional"
    parameters.attention_type = (
        llama_cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL if bidirectional else llama_cpp.LLAMA_ATTENTION_TYPE_CAUSAL
    )
    parameters.flash_attn_type = int(settings.flash_attention)
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.offload_kqv = parameters.op_offload = settings.gpu_layers > 0
    return parameters


def _free(handles: dict[str, Any]) -> None:
    context, model = handles.pop("context", None), handles.pop("model", None)
    if context:
        llama_cpp.llama_free(context)
    if model:
        llama_cpp.llama_model_free(model)


def _quoted() -> str:
    """llama.cpp's first complaint since the last call: the cause, while later ones tell of its consequences."""
    return f" ({_last_errors[0]})" if _last_errors else ""
