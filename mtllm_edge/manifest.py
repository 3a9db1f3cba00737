"""`bundle.json`: the one contract between the exporters and the runtime.

The classes are the format. Unknown keys are an error within one format version, so a typo fails at once; a change of
meaning raises `FORMAT_VERSION`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

import msgspec

from mtllm_edge.errors import ModelError
from mtllm_edge.kinds import Kind

FORMAT_VERSION = 1
MANIFEST_NAME = "bundle.json"
MAX_STRIDE = 4

_WIDTH_LIMIT, _LAYERS_LIMIT, _TOKENS_LIMIT = 2**16, 512, 2**14
"""Far above every model that fits, and below what would exhaust memory before a file is read."""
_LISTS_LIMIT, _FILES_LIMIT, _PATH_LIMIT, _CODE_LIMIT = 2**16, 4_096, 512, 64
_TEMPERATURES = (1e-5, 1e5)
UNSURE = "unsure"
"""The label below a task's threshold, unless it has another one for that."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

EncoderBackend = Literal["ctranslate2", "onnx"]
LlmBackend = Literal["gguf", "onnx"]
Architecture = Literal["llama", "llama-embed", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3"]
GgufQuantization = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "iq4_nl"]
OnnxQuantization = Literal["f32", "int8"]
LLM_QUANTIZATIONS: dict[LlmBackend, tuple[str, ...]] = {
    "gguf": get_args(GgufQuantization),
    "onnx": get_args(OnnxQuantization),
}


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all manifest parts: immutable, strict about keys."""


class Encoder(_Part, frozen=True):
    """The translation encoder."""

    family: str
    """Architecture as transformers names it: ``bert``, ``m2m_100`` ..."""
    backend: EncoderBackend
    """Its form, and so its engine."""
    quantization: Literal["float32", "int8"]
    d_model: int
    """Width of the encoder states."""
    max_tokens: int
    """Longest input in tokens, the special ones included."""
    prefix_tokens: tuple[str, ...]
    """Tokens put before the text; ``{language}`` stands for the language's code: alone, or as in ``__{language}__``."""
    suffix_tokens: tuple[str, ...]
    """Tokens put after the text, ``{language}`` as above."""
    float32_matrices: tuple[str, ...] = ()
    """Of int8 in ONNX: the matrices, by their names in transformers, that lose too much and stay in float32."""

    @property
    def path(self) -> str:
        """Where it lies in the bundle: a folder of CTranslate2, or an ONNX file."""
        return "encoder" if self.backend == "ctranslate2" else "encoder.onnx"

    @property
    def files(self) -> tuple[str, ...]:
        """The files without which it cannot be loaded."""
        if self.backend == "onnx":
            return (self.path,)
        return tuple(f"{self.path}/{name}" for name in ("model.bin", "config.json", "vocabulary.json"))

    def __post_init__(self) -> None:
        """Refuse a contradiction, as for `Bridge`."""
        if self.float32_matrices and (self.backend, self.quantization) != ("onnx", "int8"):
            raise ValueError(f"float32_matrices belong to int8 in onnx, found {self.quantization} in {self.backend}")

    @property
    def needs_language(self) -> bool:
        """Whether every text must come with a language code."""
        return any("{language}" in token for token in self.prefix_tokens + self.suffix_tokens)


class Bridge(_Part, frozen=True):
    """The up-projection from encoder states to LLM inputs."""

    kind: Literal["linear", "strided"]
    stride: int = 1
    """Neighbouring encoder states that become one LLM input: 1 of the linear kind, else 2 to `MAX_STRIDE`."""

    @classmethod
    def of_stride(cls, stride: int) -> Bridge:
        """The bridge with this stride; raises ValueError where there is none."""
        return cls(kind="linear" if stride == 1 else "strided", stride=stride)

    def __post_init__(self) -> None:
        """Refuse a contradiction; where a file is read, msgspec makes it an error that names the place."""
        if self.kind == "linear" and self.stride != 1:
            raise ValueError(f"a linear bridge has stride 1, found {self.stride}")
        if self.kind == "strided" and not 2 <= self.stride <= MAX_STRIDE:
            raise ValueError(f"a strided bridge has a stride from 2 to {MAX_STRIDE}, found {self.stride}")


class Llm(_Part, frozen=True):
    """The LLM body."""

    architecture: Architecture
    """As GGUF calls it: ``llama``, or ``llama-embed`` where a GGUF file of it is bidirectional, ``qwen2`` ..."""
    n_embd: int
    """Width of the LLM's inputs and of the pooled vectors."""
    n_layer: int
    quantization: GgufQuantization | OnnxQuantization
    """One of `LLM_QUANTIZATIONS` of the form."""
    attention: Literal["causal", "bidirectional"]
    pooling: Literal["mean"]
    backend: LlmBackend = "gguf"
    """Its form, and so its engine: llama.cpp or ONNX Runtime. Older bundles, which do not say, have GGUF."""
    float32_matrices: tuple[str, ...] = ()
    """Of int8: the matrices, by their names in transformers, that lose too much in 8 bits and stay in float32."""

    @property
    def file(self) -> str:
        """Name of its file in the bundle."""
        return f"llm.{self.backend}"

    def __post_init__(self) -> None:
        """Refuse a contradiction, as for `Bridge`."""
        allowed = LLM_QUANTIZATIONS[self.backend]
        if self.quantization not in allowed:
            raise ValueError(f"{self.backend} has the quantisations {', '.join(allowed)}, found {self.quantization}")
        if self.float32_matrices and self.quantization != "int8":
            raise ValueError(f"float32_matrices belong to int8, found {self.quantization}")


class Task(_Part, frozen=True):
    """A classification head over the pooled vectors."""

    kind: Kind
    """What it reads; see `mtllm_edge.kinds`."""
    labels: tuple[str, ...]
    """Label of each row of the head's weight. Empty for multiple choice, whose one row scores each choice."""
    head: str
    """Path of the safetensors file: ``weight`` (rows, n_embd), optional ``bias`` (rows)."""
    temperature: float = 1.0
    """The logits are divided by it before the softmax."""
    adapter: str | None = None
    """Path of a LoRA in GGUF that the LLM wears for this task; None is the LLM as it is."""
    temperatures: dict[str, float] = {}
    """Language code -> the temperature of texts in it; `temperature` is that of all others."""
    threshold: float | None = None
    """Confidence below which the task abstains, from 0 to 1; None is never."""
    abstain: str | None = None
    """The label that is given then; None is `UNSURE`."""

    @property
    def rows(self) -> int:
        """Rows of the head's weight."""
        return 1 if self.kind == "multiple_choice" else len(self.labels)


class Source(_Part, frozen=True):
    """Where weights came from, and under which licence."""

    part: str
    """What it became: ``encoder``, ``llm``, ``tokenizer``, ``adapter``, ``task topic`` ..."""
    name: str
    license: str
    """SPDX identifier, or the owner's own words."""
    file: str | None = None
    """Path of the licence text inside the bundle."""


class Parity(_Part, frozen=True):
    """How closely one exported part follows the torch stack on the same sentences."""

    component: str
    cosine_min: float
    cosine_mean: float
    fvu: float
    """Fraction of variance unexplained: squared error over the variance of the torch outputs."""
    samples: int


class File(_Part, frozen=True):
    """Size and digest of one file of the bundle."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class Manifest(_Part, frozen=True):
    """The whole of `bundle.json`."""

    format_version: int
    name: str
    created_with: str
    """Program and version, e.g. ``mtllm-edge 0.1.0``."""
    encoder: Encoder
    bridge: Bridge
    llm: Llm
    tasks: dict[str, Task]
    languages: tuple[str, ...]
    """Codes that stand for a language token; empty where the encoder takes none."""
    sources: tuple[Source, ...]
    parity: tuple[Parity, ...]
    files: dict[str, File]
    """Every other file of the bundle: POSIX path relative to the bundle -> size and digest."""
    llm_onnx: Llm | None = None
    """The same body for ONNX Runtime, in a bundle that has both forms; `llm` is GGUF then."""

    @classmethod
    def from_json(cls, text: bytes, *, origin: str) -> Manifest:
        """Parse and check a manifest.

        Args:
            text: Content of `bundle.json`.
            origin: The file's path, for messages.

        Raises:
            ModelError: Not a manifest, one of another format version, or one whose parts contradict each other.
        """
        try:
            version = msgspec.json.decode(text, type=_Versioned).format_version
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"{origin} is not a bundle manifest ({error}); export the bundle again") from None
        if version != FORMAT_VERSION:
            advice = "upgrade mtllm-edge" if version > FORMAT_VERSION else "export the bundle again"
            raise ModelError(
                f"{origin} has format version {version}, this mtllm-edge reads version {FORMAT_VERSION}: {advice}"
            )
        try:
            manifest = msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"{origin}: {error}; export the bundle again") from None
        faults = manifest._faults()
        if faults:
            raise ModelError(f"{origin}: {'; '.join(faults)}; export the bundle again")
        return manifest

    @property
    def llms(self) -> tuple[Llm, ...]:
        """The forms of the LLM, the default first."""
        return (self.llm,) if self.llm_onnx is None else (self.llm, self.llm_onnx)

    def to_json(self) -> bytes:
        """The manifest as indented UTF-8 JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def _faults(self) -> list[str]:
        faults = [
            f"{name} must be positive, found {value}" if value <= 0 else f"{name} is {value}, expected {limit} at most"
            for name, value, limit in (
                ("encoder.d_model", self.encoder.d_model, _WIDTH_LIMIT),
                ("encoder.max_tokens", self.encoder.max_tokens, _TOKENS_LIMIT),
                ("llm.n_embd", self.llm.n_embd, _WIDTH_LIMIT),
                ("llm.n_layer", self.llm.n_layer, _LAYERS_LIMIT),
            )
            if not 0 < value <= limit
        ]
        if self.encoder.needs_language and not self.languages:
            faults.append("the encoder takes a language token but languages is empty")
        if self.llm_onnx is not None and _body(self.llm_onnx, "onnx") != _body(self.llm, "gguf"):
            faults.append("llm_onnx is not the ONNX form of the body that llm has in GGUF")
        for name, task in self.tasks.items():
            faults += self._task_faults(name, task)
        faults += [
            f"file path {path!r} does not stay inside the bundle" for path in self.files if not _stays_inside(path)
        ]
        if len({path.casefold() for path in self.files}) != len(self.files):
            faults.append("two file paths differ in upper and lower case only")
        return faults + self._size_faults()

    def _task_faults(self, name: str, task: Task) -> Iterator[str]:
        if task.kind == "multiple_choice" and task.labels:
            yield f"task {name!r} is multiple choice and takes no labels, found {list(task.labels)}"
        elif task.kind != "multiple_choice" and (len(task.labels) < 2 or len(set(task.labels)) != len(task.labels)):
            yield f"task {name!r} needs two or more different labels, found {list(task.labels)}"
        yield from (f"task {name!r} {fault}" for fault in _confidence_faults(task))
        if task.head not in self.files:
            yield f"task {name!r} names the head {task.head!r}, which files does not list"
        if not (task.head.startswith("tasks/") and task.head.endswith(".safetensors")):
            # The name of another model file would put the check of a head in the place of its own.
            yield f"task {name!r} names the head {task.head!r}, expected tasks/....safetensors"
        if task.adapter is None:
            return
        if task.adapter not in self.files:
            yield f"task {name!r} names the adapter {task.adapter!r}, which files does not list"
        if not (task.adapter.startswith("tasks/") and task.adapter.endswith(".gguf")):
            yield f"task {name!r} names the adapter {task.adapter!r}, expected tasks/....gguf"
        if self.llm.backend != "gguf":
            yield f"task {name!r} has an adapter, which needs an LLM in GGUF, found {self.llm.backend}"

    def _size_faults(self) -> list[str]:
        lists = {
            "files": (len(self.files), _FILES_LIMIT),
            "tasks": (len(self.tasks), _FILES_LIMIT),
            "languages": (len(self.languages), _LISTS_LIMIT),
            "labels": (max((len(task.labels) for task in self.tasks.values()), default=0), _LISTS_LIMIT),
            "special tokens": (len(self.encoder.prefix_tokens + self.encoder.suffix_tokens), 64),
        }
        faults = [f"{size} {name}, expected {limit} at most" for name, (size, limit) in lists.items() if size > limit]
        spoilt = next((text for text in _texts(msgspec.to_builtins(self)) if has_control_characters(text)), None)
        if spoilt is not None:
            faults.append(f"{spoilt!r} has control characters")
        return faults


def abstain_fault(kind: Kind, labels: Sequence[str], abstain: str) -> str | None:
    """What keeps a label from saying that a task abstains, as the end of a sentence about the task."""
    if not abstain.strip() or has_control_characters(abstain):
        return f"abstains with the label {abstain!r}, expected a word"
    if abstain in labels or (kind == "multiple_choice" and abstain.isdecimal()):
        return f"abstains with the label {abstain!r}, which is an answer of its own; name another one"
    return None


def _confidence_faults(task: Task) -> Iterator[str]:
    """What is wrong with temperatures and threshold; of a language's temperatures, the first."""
    low, high = _TEMPERATURES
    if not task.temperature > 0:
        yield f"has temperature {task.temperature}, expected above 0"
    elif not low <= task.temperature <= high:
        yield f"has temperature {task.temperature}, expected {low:g} to {high:g}"
    if len(task.temperatures) > _LISTS_LIMIT:
        yield f"has temperatures of {len(task.temperatures)} languages, expected {_LISTS_LIMIT} at most"
    else:
        for code, value in task.temperatures.items():
            if not code.strip() or len(code) > _CODE_LIMIT:
                yield f"has a temperature for the language {code[:_CODE_LIMIT]!r}, which is no code"
                break
            if not low <= value <= high:
                yield f"has temperature {value} for the language {code!r}, expected {low:g} to {high:g}"
                break
    if task.threshold is not None and not 0 <= task.threshold <= 1:
        yield f"has the threshold {task.threshold}, expected 0 to 1"
    if task.threshold is not None or task.abstain is not None:
        fault = abstain_fault(task.kind, task.labels, UNSURE if task.abstain is None else task.abstain)
        if fault is not None:
            yield fault


def has_control_characters(text: str) -> bool:
    """Whether a text would move a terminal's cursor, or take several lines; none in a manifest does."""
    return _CONTROL.search(text) is not None


def _stays_inside(path: str) -> bool:
    """Whether a path is relative, plain on every system, and written in the one way that has no detours."""
    parts = PurePosixPath(path).parts
    plain = path == "/".join(parts) and not {"\\", ":"} & set(path) and len(path) <= _PATH_LIMIT
    return (
        plain
        and not any(part == ".." or part.endswith((".", " ")) for part in parts)
        and path not in ("", MANIFEST_NAME)
    )


def _texts(value: Any) -> Iterator[str]:
    """Every string in plain data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _body(llm: Llm, backend: LlmBackend) -> object:
    """What two forms of one body have in common, if this is the form in question."""
    return llm.backend == backend and (llm.n_embd, llm.n_layer, llm.attention, llm.pooling)


class _Versioned(msgspec.Struct):
    format_version: int
