"""LLM body in llama.cpp, with embeddings as its inputs: the only file that imports `llama_cpp`.

llama.cpp ends the process where an assertion fails, so everything that could reach one is checked before each call.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.backends.checks import check_ids, check_inputs, check_spans
from mtllm_edge.backends.cpu import check_threads, configure_openmp
from mtllm_edge.backends.llms.base import span_means
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.errors import EngineError, ModelError, UsageError
from mtllm_edge.safe_text import one_line
from mtllm_edge.tokenization.batching import TEXTS_PER_BATCH, TOKENS_PER_BATCH
from mtllm_edge.tokenization.encoding import Spans

configure_openmp()
import llama_cpp  # noqa: E402 (its OpenMP reads the environment when it is loaded)

_MAX_TEXTS, _MAX_TOKENS = 256, 2**16  # LLAMA_MAX_SEQ; with more tokens, working memory is terabytes
_NO_ADAPTERS: Mapping[str, Path] = MappingProxyType({})
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h; the binding's own table of levels is out of date
_GPU_TYPES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU in ggml-backend.h
_NO_GPUS = (ctypes.c_void_p * 1)(None)  # an empty list of devices; must outlive its readers
_DOCTOR = "; see `mtllm-edge doctor`"
_last_errors: deque[str] = deque(maxlen=8)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _collect_errors(level: int, text: bytes, _: object) -> None:
    """Collect llama.cpp's error lines for messages and print nothing; must live as long as the process."""
    if level == _LOG_ERROR and text.strip():
        _last_errors.append(one_line(text.decode("utf-8", errors="replace")))


llama_cpp.llama_log_set(_collect_errors, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


class GgufLlm:
    """A llama.cpp context for all batches; a lock lets several threads share it."""

    pads = False

    def __init__(
        self,
        path: Path,
        spec: LlmSpec,
        *,
        settings: EngineSettings,
        threads: int,
        max_tokens: int = TOKENS_PER_BATCH,
        max_texts: int = TEXTS_PER_BATCH,
        adapters: Mapping[str, Path] = _NO_ADAPTERS,
    ) -> None:
        """Load a headless GGUF and its LoRA adapters, by their names in `pool`; the headers were checked before.

        `max_tokens` and `max_texts` are the limits of a batch.

        Raises:
            UsageError: The number of threads, tokens or texts is out of bounds.
            ModelError: The loaded model does not match the manifest, or an adapter changes nothing.
            EngineError: llama.cpp refuses the file or lacks memory.
        """
        check_threads(threads)
        if not (1 <= max_texts <= _MAX_TEXTS and 1 <= max_tokens <= _MAX_TOKENS):
            raise UsageError(
                f"batches of {max_texts} texts and {max_tokens} tokens, expected up to {_MAX_TEXTS} and {_MAX_TOKENS}"
            )
        self._path, self._n_embd, self._max_texts = path, spec.n_embd, max_texts
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._handles: dict[str, Any] = {}
        self._adapters: dict[str, Any] = {}
        self._free = weakref.finalize(self, _free, self._handles)
        try:
            self._load_model(spec, settings)
            self._load_adapters(adapters)  # before the context, whose graph reserves memory for them
            self._create_context(_context_parameters(spec, settings, threads, max_tokens, max_texts))
            # llama.cpp's graph of Gemma 2 scales all inputs; torch scales the LLM's own tokens only.
            graph_scale = math.sqrt(spec.n_embd) if spec.architecture == "gemma2" else 1.0
            self._batch = _Batch(max_tokens, spec.n_embd, divisor=graph_scale)
            self._check_adapters(adapters)
        except BaseException:
            self.close()
            raise

    def _load_model(self, spec: LlmSpec, settings: EngineSettings) -> None:
        _last_errors.clear()
        model = llama_cpp.llama_model_load_from_file(os.fsencode(self._path), _model_parameters(settings))
        if not model:
            raise EngineError(f"{self._path}: llama.cpp cannot load it{last_error()}{_DOCTOR}")
        self._handles["model"] = model
        shape = (llama_cpp.llama_model_n_embd(model), llama_cpp.llama_model_n_layer(model))
        if shape != (spec.n_embd, spec.n_layer):
            raise ModelError(
                f"{self._path}: width and layers are {shape}, the manifest says {(spec.n_embd, spec.n_layer)}; "
                "export the bundle again"
            )

    def _load_adapters(self, adapters: Mapping[str, Path]) -> None:
        for name, path in adapters.items():
            self._adapters[name] = llama_cpp.llama_adapter_lora_init(self._handles["model"], os.fsencode(path))
            if not self._adapters[name]:
                raise EngineError(f"{path}: llama.cpp cannot load it{last_error()}; export the adapter again")

    def _create_context(self, parameters: Any) -> None:
        self._handles["context"] = llama_cpp.llama_init_from_model(self._handles["model"], parameters)
        if not self._handles["context"]:
            raise EngineError(f"{self._path}: llama.cpp cannot make a context{last_error()}{_DOCTOR}")

    def _check_adapters(self, adapters: Mapping[str, Path]) -> None:
        """Refuse an adapter that does not change the vectors: it was not applied, or is empty."""
        if not adapters:
            return
        inputs_LE = np.random.default_rng(0).normal(0, 0.05, (4, self._n_embd)).astype(np.float32)
        plain_1E = self.pool([inputs_LE])
        for name, path in adapters.items():
            if np.array_equal(self.pool([inputs_LE], adapter=name), plain_1E):
                raise ModelError(f"{path}: the adapter does not change the LLM's vectors; export it again")

    def pool(
        self, batch: Sequence[NDArray[np.float32]], spans: Sequence[Spans] | None = None, *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Return means of the final states; arguments and result as for `mtllm_edge.backends.llms.base.Llm.pool`.

        Raises:
            UsageError: The adapter was not loaded.
            EngineError: The batch is invalid or too large, llama.cpp failed, or it is closed.
        """
        if adapter is not None and adapter not in self._adapters:
            raise UsageError(f"{self._path}: no adapter {adapter!r} was loaded; load the bundle again")
        if not batch:
            return np.empty((0, self._n_embd), np.float32)
        with self._lock:
            self._check_open()
            check_inputs(batch, n_embd=self._n_embd, path=self._path)
            check_spans(spans, batch, path=self._path)
            lengths = self._check_lengths(batch)
            self._activate_adapter(adapter)
            self._batch.fill(batch)
            states_TE = self._decode()
        return self._means(states_TE, lengths, spans)

    def pool_tokens(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return means of the final states, (texts, n_embd), of token ids, if the file has their embeddings.

        Raises:
            ModelError: An id is outside the file's vocabulary, of which a headless file has only a stub.
            EngineError: As for `pool`.
        """
        if not batch:
            return np.empty((0, self._n_embd), np.float32)
        with self._lock:
            self._check_open()
            if not all(isinstance(index, int | np.integer) for ids in batch for index in ids):
                raise ModelError(f"{self._path}: token ids must be integers")
            vocabulary = llama_cpp.llama_model_get_vocab(self._handles["model"])
            check_ids(batch, vocabulary_size=llama_cpp.llama_vocab_n_tokens(vocabulary), path=self._path)
            lengths = self._check_lengths(batch)
            self._activate_adapter(None)
            self._batch.fill_tokens(batch)
            states_TE = self._decode()
        return self._means(states_TE, lengths, None)

    def close(self) -> None:
        """Free the memory; may be called repeatedly."""
        with self._lock:
            self._free()

    def _activate_adapter(self, name: str | None) -> None:
        """Set the adapter of the following calls; llama.cpp ignores a repetition."""
        adapters = [] if name is None else [self._adapters[name]]
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * len(adapters))(
            *(ctypes.cast(handle, llama_cpp.llama_adapter_lora_p_ctypes) for handle in adapters)
        )
        scales = (ctypes.c_float * len(adapters))(*[1.0] * len(adapters))
        status = llama_cpp.llama_set_adapters_lora(self._handles["context"], handles, len(adapters), scales)
        if status != 0:
            raise EngineError(f"{self._path}: llama.cpp failed to set the adapter {name!r} (status {status})")

    def _check_open(self) -> None:
        if not self._free.alive:
            raise EngineError(f"{self._path}: the LLM is closed; load the bundle again")
        if os.getpid() != self._process:
            raise EngineError(
                f"{self._path}: the LLM was loaded before this process was forked; load it in each process"
            )

    def _check_lengths(self, batch: Sequence[Any]) -> list[int]:
        lengths = [len(text) for text in batch]
        if len(lengths) > self._max_texts:
            raise EngineError(f"{self._path}: a batch of {len(lengths)} texts, expected at most {self._max_texts}")
        if sum(lengths) > self._batch.capacity:
            raise EngineError(
                f"{self._path}: a batch of {sum(lengths)} tokens, expected at most {self._batch.capacity}"
            )
        return lengths

    def _decode(self) -> NDArray[np.float32]:
        """Final states of the batch, (tokens, n_embd)."""
        context = self._handles["context"]
        _last_errors.clear()
        memory = llama_cpp.llama_get_memory(context)
        if memory:
            llama_cpp.llama_memory_clear(memory, False)
            status = llama_cpp.llama_decode(context, self._batch.struct)
        else:  # architectures with bidirectional attention have no memory
            status = llama_cpp.llama_encode(context, self._batch.struct)
        if status != 0:
            raise EngineError(f"{self._path}: llama.cpp failed with status {status}{last_error()}{_DOCTOR}")
        states = llama_cpp.llama_get_embeddings(context)
        if not states:
            raise EngineError(f"{self._path}: llama.cpp returned no states{_DOCTOR}")
        return np.array(np.ctypeslib.as_array(states, (self._batch.struct.n_tokens, self._n_embd)), np.float32)

    def _means(
        self, states_TE: NDArray[np.float32], lengths: Sequence[int], spans: Sequence[Spans] | None
    ) -> NDArray[np.float32]:
        if not np.isfinite(states_TE).all():
            raise EngineError(f"{self._path}: llama.cpp returned numbers that are not finite{_DOCTOR}")
        return span_means(np.split(states_TE, np.cumsum(lengths)[:-1]), spans)


class _Batch:
    """A `llama_batch` over numpy arrays, filled for every call without a loop over tokens."""

    def __init__(self, capacity: int, n_embd: int, *, divisor: float) -> None:
        """Allocate the arrays; embeddings are divided by `divisor`."""
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


def _context_parameters(llm: LlmSpec, settings: EngineSettings, threads: int, max_tokens: int, max_texts: int) -> Any:
    parameters = llama_cpp.llama_context_default_params()
    # One micro-batch holds the whole batch: with bidirectional attention, splitting it would be wrong.
    # llama.cpp pads it to a multiple of the sequence count and aborts if the two differ (as 514 with 64).
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = -(-max_tokens // max_texts) * max_texts
    parameters.n_seq_max = max_texts
    # Otherwise llama.cpp splits a batch of unequal lengths, and its own means were silently wrong.
    parameters.kv_unified = True
    parameters.embeddings = True
    # No pooling: llama.cpp's own means are over whole sequences, and a choice is a span of one.
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


def last_error() -> str:
    """Return llama.cpp's first error line since the last call, in brackets: the cause, before its consequences."""
    return f" ({_last_errors[0]})" if _last_errors else ""


def gpu_names() -> tuple[str, ...]:
    """Return the names of llama.cpp's GPUs, as ``CUDA0 (NVIDIA T4)``.

    A driver may end the process, so only child processes call this.
    """
    if not llama_cpp.llama_supports_gpu_offload():
        return ()
    return tuple(name for kind, name in ggml_devices() if kind in _GPU_TYPES) or ("a GPU without a name",)


def ggml_devices() -> Iterator[tuple[int, str]]:
    """Yield type and name of ggml's devices, CPUs included; none if its library hides them, as on Windows."""
    try:
        from llama_cpp._ggml import libggml  # the binding itself has no functions for it

        count, get = libggml.ggml_backend_dev_count, libggml.ggml_backend_dev_get
        kind, name = libggml.ggml_backend_dev_type, libggml.ggml_backend_dev_name
        description = libggml.ggml_backend_dev_description
    except (ImportError, AttributeError, OSError):
        return
    count.restype, get.argtypes, get.restype = ctypes.c_size_t, [ctypes.c_size_t], ctypes.c_void_p
    for function, result in ((kind, ctypes.c_int), (name, ctypes.c_char_p), (description, ctypes.c_char_p)):
        function.argtypes, function.restype = [ctypes.c_void_p], result
    for device in map(get, range(count())):
        name_, description_ = ((text(device) or b"").decode("utf-8", errors="replace") for text in (name, description))
        yield kind(device), f"{name_} ({description_})"
