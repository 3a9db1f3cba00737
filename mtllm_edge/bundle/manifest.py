"""`bundle.json` as classes: the format that exporters write and the runtime reads.

`mtllm_edge.bundle.validation` parses it. Unknown keys are an error within a format version, so that a typo fails at
once; `FORMAT_VERSION` rises when the meaning of a key changes.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

from mtllm_edge.inputs import Kind

FORMAT_VERSION = 1
MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"
ENCODER_NAME = "encoder"
"""Folder of a CTranslate2 encoder; see `EncoderSpec.path`."""
BRIDGE_NAME = "bridge.safetensors"
LLM_NAME = "llm.gguf"
"""GGUF file of an LLM; see `LlmSpec.file`."""

MAX_STRIDE = 4
MAX_LIST, MAX_FILES = 2**16, 4_096
"""Most items of a list, and most files or tasks of a bundle."""
_Width = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
_Layers = Annotated[int, msgspec.Meta(ge=1, le=512)]
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**14)]
_SpecialTokens = Annotated[tuple[str, ...], msgspec.Meta(max_length=32)]

UNSURE = "unsure"
"""Default label of an abstention."""

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
    """Architecture under its name in transformers: ``bert``, ``m2m_100`` ..."""
    backend: EncoderBackend
    """File format and engine."""
    quantization: Literal["float32", "int8"]
    d_model: _Width
    """Width of the encoder states."""
    max_tokens: _Tokens
    """Maximum length of an input in tokens, special tokens included."""
    prefix_tokens: _SpecialTokens
    """Tokens before the text; ``{language}`` is replaced by the language code, alone or as in ``__{language}__``."""
    suffix_tokens: _SpecialTokens
    """Tokens after the text, ``{language}`` as above."""
    float32_matrices: tuple[str, ...] = ()
    """Matrices of an int8 ONNX encoder that stay in float32, under their names in transformers."""

    @property
    def path(self) -> str:
        """Path in the bundle: a CTranslate2 folder, or an ONNX file."""
        return ENCODER_NAME if self.backend == "ctranslate2" else "encoder.onnx"

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of its required files."""
        if self.backend == "onnx":
            return (self.path,)
        return tuple(f"{self.path}/{name}" for name in ("model.bin", "config.json", "vocabulary.json"))

    def __post_init__(self) -> None:
        """Raise ValueError for a contradiction; msgspec adds the location when it reads a file."""
        if self.float32_matrices and (self.backend, self.quantization) != ("onnx", "int8"):
            raise ValueError(f"float32_matrices require int8 in onnx, found {self.quantization} in {self.backend}")

    @property
    def needs_language(self) -> bool:
        """Whether every text requires a language code."""
        return any("{language}" in token for token in self.prefix_tokens + self.suffix_tokens)


class BridgeSpec(_Part, frozen=True):
    """The up-projection from encoder states to LLM inputs."""

    kind: Literal["linear", "strided"]
    stride: int = 1
    """Neighboring encoder states per LLM input: 1 if linear, 2 to `MAX_STRIDE` if strided."""

    @classmethod
    def of_stride(cls, stride: int) -> BridgeSpec:
        """Return the bridge with this stride; raises ValueError for a stride out of bounds."""
        return cls(kind="linear" if stride == 1 else "strided", stride=stride)

    def __post_init__(self) -> None:
        """Raise ValueError for a contradiction."""
        if self.kind == "linear" and self.stride != 1:
            raise ValueError(f"a linear bridge has stride 1, found {self.stride}")
        if self.kind == "strided" and not 2 <= self.stride <= MAX_STRIDE:
            raise ValueError(f"a strided bridge has a stride from 2 to {MAX_STRIDE}, found {self.stride}")


class LlmSpec(_Part, frozen=True):
    """The LLM body."""

    architecture: Architecture
    """GGUF's name: ``llama``, or ``llama-embed`` for a bidirectional one in GGUF, ``qwen2`` ..."""
    n_embd: _Width
    """Width of the LLM's inputs and of the pooled vectors."""
    n_layer: _Layers
    quantization: GgufQuantization | OnnxQuantization
    """One of the backend's `LLM_QUANTIZATIONS`."""
    attention: Literal["causal", "bidirectional"]
    pooling: Literal["mean"]
    backend: LlmBackend = "gguf"
    """File format and engine: llama.cpp or ONNX Runtime. Older bundles lack the key and have GGUF."""
    float32_matrices: tuple[str, ...] = ()
    """Matrices of an int8 LLM that stay in float32, under their names in transformers."""

    @property
    def file(self) -> str:
        """Name of its file in the bundle."""
        return f"llm.{self.backend}"

    def __post_init__(self) -> None:
        """Raise ValueError for a contradiction."""
        allowed = LLM_QUANTIZATIONS[self.backend]
        if self.quantization not in allowed:
            raise ValueError(f"{self.backend} has the quantizations {', '.join(allowed)}, found {self.quantization}")
        if self.float32_matrices and self.quantization != "int8":
            raise ValueError(f"float32_matrices require int8, found {self.quantization}")


class TaskSpec(_Part, frozen=True):
    """A classification head over the pooled vectors."""

    kind: Kind
    """Kind of its inputs; see `mtllm_edge.inputs`."""
    labels: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_LIST)]
    """Label of each row of the head's weight; empty for multiple choice, whose single row scores each choice."""
    head: str
    """Path of the safetensors file: ``weight`` (rows, n_embd), optional ``bias`` (rows)."""
    temperature: float = 1.0
    """Divisor of the logits."""
    adapter: str | None = None
    """Path of a LoRA in GGUF, which is applied to the LLM for this task."""
    temperatures: Annotated[dict[str, float], msgspec.Meta(max_length=MAX_LIST)] = {}
    """Language code -> temperature of texts in it; `temperature` applies to all others."""
    threshold: float | None = None
    """Confidence, 0 to 1, below which the task abstains; None never abstains."""
    abstain: str | None = None
    """Label of an abstention; None is `UNSURE`."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Paths of head and adapter."""
        return (self.head,) if self.adapter is None else (self.head, self.adapter)

    @property
    def rows(self) -> int:
        """Rows of the head's weight."""
        return 1 if self.kind == "multiple_choice" else len(self.labels)


class WeightSource(_Part, frozen=True):
    """Origin and license of weights or data."""

    part: str
    """Part made from it: ``encoder``, ``llm``, ``tokenizer``, ``adapter``, ``task topic`` ..."""
    name: str
    license: str
    """SPDX identifier, or the owner's own words."""
    file: str | None = None
    """Path of the license text inside the bundle."""

    @property
    def is_non_commercial(self) -> bool:
        """Whether the license, by its name, forbids commercial use."""
        words = self.license.lower().replace("-", " ").replace("_", " ").split()
        return "nc" in words or "noncommercial" in words or "non commercial" in " ".join(words)


class Parity(_Part, frozen=True):
    """Agreement of an exported part with the torch stack on the same sentences."""

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
    tasks: Annotated[dict[str, TaskSpec], msgspec.Meta(max_length=MAX_FILES)]
    languages: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_LIST)]
    """Codes of the encoder's language tokens; empty for encoders without them."""
    sources: tuple[WeightSource, ...]
    parity: tuple[Parity, ...]
    files: Annotated[dict[str, FileEntry], msgspec.Meta(max_length=MAX_FILES)]
    """Every other file of the bundle: POSIX path relative to the bundle -> size and digest."""
    llm_onnx: LlmSpec | None = None
    """The same body for ONNX Runtime, in a bundle with both backends; `llm` is GGUF then."""

    @property
    def llms(self) -> tuple[LlmSpec, ...]:
        """The LLM for each of its backends, the default first."""
        return (self.llm,) if self.llm_onnx is None else (self.llm, self.llm_onnx)

    def to_json(self) -> bytes:
        """The manifest as indented UTF-8 JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
