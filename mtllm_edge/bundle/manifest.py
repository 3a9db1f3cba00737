"""`bundle.json`: the one contract between the exporters and the runtime.

The classes are the format, and `mtllm_edge.bundle.validation` reads it. Unknown keys are an error within one format
version, so a typo fails at once; a change of meaning raises `FORMAT_VERSION`.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

from mtllm_edge.inputs import Kind

FORMAT_VERSION = 1
MANIFEST_NAME = "bundle.json"
MAX_STRIDE = 4

UNSURE = "unsure"
"""The label below a task's threshold, unless it has another one for that."""

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


class EncoderSpec(_Part, frozen=True):
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
        """Refuse a contradiction, as for `BridgeSpec`."""
        if self.float32_matrices and (self.backend, self.quantization) != ("onnx", "int8"):
            raise ValueError(f"float32_matrices belong to int8 in onnx, found {self.quantization} in {self.backend}")

    @property
    def needs_language(self) -> bool:
        """Whether every text must come with a language code."""
        return any("{language}" in token for token in self.prefix_tokens + self.suffix_tokens)


class BridgeSpec(_Part, frozen=True):
    """The up-projection from encoder states to LLM inputs."""

    kind: Literal["linear", "strided"]
    stride: int = 1
    """Neighbouring encoder states that become one LLM input: 1 of the linear kind, else 2 to `MAX_STRIDE`."""

    @classmethod
    def of_stride(cls, stride: int) -> BridgeSpec:
        """The bridge with this stride; raises ValueError where there is none."""
        return cls(kind="linear" if stride == 1 else "strided", stride=stride)

    def __post_init__(self) -> None:
        """Refuse a contradiction; where a file is read, msgspec makes it an error that names the place."""
        if self.kind == "linear" and self.stride != 1:
            raise ValueError(f"a linear bridge has stride 1, found {self.stride}")
        if self.kind == "strided" and not 2 <= self.stride <= MAX_STRIDE:
            raise ValueError(f"a strided bridge has a stride from 2 to {MAX_STRIDE}, found {self.stride}")


class LlmSpec(_Part, frozen=True):
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
        """Refuse a contradiction, as for `BridgeSpec`."""
        allowed = LLM_QUANTIZATIONS[self.backend]
        if self.quantization not in allowed:
            raise ValueError(f"{self.backend} has the quantisations {', '.join(allowed)}, found {self.quantization}")
        if self.float32_matrices and self.quantization != "int8":
            raise ValueError(f"float32_matrices belong to int8, found {self.quantization}")


class TaskSpec(_Part, frozen=True):
    """A classification head over the pooled vectors."""

    kind: Kind
    """What it reads; see `mtllm_edge.inputs`."""
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


class WeightSource(_Part, frozen=True):
    """Where weights came from, and under which license."""

    part: str
    """What it became: ``encoder``, ``llm``, ``tokenizer``, ``adapter``, ``task topic`` ..."""
    name: str
    license: str
    """SPDX identifier, or the owner's own words."""
    file: str | None = None
    """Path of the license text inside the bundle."""


class Parity(_Part, frozen=True):
    """How closely one exported part follows the torch stack on the same sentences."""

    component: str
    cosine_min: float
    cosine_mean: float
    fvu: float
    """Fraction of variance unexplained: squared error over the variance of the torch outputs."""
    samples: int


class FileEntry(_Part, frozen=True):
    """Size and digest of one file of the bundle."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class Manifest(_Part, frozen=True):
    """The whole of `bundle.json`."""

    format_version: int
    name: str
    created_with: str
    """Program and version, e.g. ``mtllm-edge 0.1.0``."""
    encoder: EncoderSpec
    bridge: BridgeSpec
    llm: LlmSpec
    tasks: dict[str, TaskSpec]
    languages: tuple[str, ...]
    """Codes that stand for a language token; empty where the encoder takes none."""
    sources: tuple[WeightSource, ...]
    parity: tuple[Parity, ...]
    files: dict[str, FileEntry]
    """Every other file of the bundle: POSIX path relative to the bundle -> size and digest."""
    llm_onnx: LlmSpec | None = None
    """The same body for ONNX Runtime, in a bundle that has both forms; `llm` is GGUF then."""

    @property
    def llms(self) -> tuple[LlmSpec, ...]:
        """The forms of the LLM, the default first."""
        return (self.llm,) if self.llm_onnx is None else (self.llm, self.llm_onnx)

    def to_json(self) -> bytes:
        """The manifest as indented UTF-8 JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
