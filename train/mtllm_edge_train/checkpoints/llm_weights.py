"""LLM weights from a GGUF file or a folder of safetensors, one tensor at a time, without torch.

Names and layouts are those of transformers (``layers.0.self_attn.q_proj.weight``, ``norm.weight``). The permutation of
the rows of q and k in GGUF files is reversed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import ModelError
from mtllm_edge_train.checkpoints.llm_families import FAMILIES, GGUF_NAMES, family_of

STACKED = "nllb-llm2vec"
"""Model type of published stacks; see `mtllm_edge_train.checkpoints.published`."""
_PREFIXES = ("", "model.", "llm2vec.", "llm2vec.model.")
"""Possible prefixes of the tensor names."""


class LlmWeights(Protocol):
    """Weights of an LLM."""

    config: dict[str, Any]
    """Keys of `LlamaConfig`, `Qwen2Config` ... in transformers; ``num_hidden_layers`` counts all layers."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return the weight with this name in transformers, dequantized, rows in the order of transformers."""


def open_llm_weights(path: str | Path) -> LlmWeights:
    """Open a GGUF file or a folder of safetensors.

    Raises:
        ModelError: The path is missing or damaged, or the family is not supported: in a GGUF file any but Llama, in a
            folder any that is missing in `mtllm_edge_train.checkpoints.llm_families.FAMILIES`.
    """
    path = Path(path)
    if path.is_dir():
        return _SafetensorsWeights(path)
    if path.is_file():
        return _GgufWeights(path)
    raise ModelError(f"{path} is neither a GGUF file nor a model folder; name the LLM's file or folder")


def permute_rope_rows(weight: NDArray[Any], n_head: int) -> NDArray[Any]:
    """Permute the rows of a q or k projection from the order of transformers to that of llama.cpp.

    transformers rotates dimension i with i + head_dim / 2, the `llama` architecture of llama.cpp 2i with 2i + 1.
    """
    rows, columns = weight.shape
    permuted: NDArray[Any] = weight.reshape(n_head, 2, rows // n_head // 2, columns).swapaxes(1, 2)
    return permuted.reshape(rows, columns)


def unpermute_rope_rows(weight: NDArray[Any], n_head: int) -> NDArray[Any]:
    """Inverse of `permute_rope_rows`."""
    rows, columns = weight.shape
    restored: NDArray[Any] = weight.reshape(n_head, rows // n_head // 2, 2, columns).swapaxes(1, 2)
    return restored.reshape(rows, columns)


class _GgufWeights:
    def __init__(self, path: Path) -> None:
        import gguf

        self._dequantize: Callable[..., NDArray[np.float32]] = gguf.dequantize
        self._path = path
        try:
            reader = gguf.GGUFReader(str(path))
        except Exception as error:  # gguf-py raises IndexError, ValueError, UnicodeDecodeError ...
            raise ModelError(f"{path} is not a readable GGUF file ({error}); download it again") from None
        fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
        architecture = fields.get("general.architecture")
        if architecture not in ("llama", "llama-embed"):
            raise ModelError(f"{path} has architecture {architecture!r}; this release reads 'llama' and 'llama-embed'")
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

        def field(key: str, default: Any = None) -> Any:
            value = fields.get(f"{architecture}.{key}", default)
            if value is None:
                raise ModelError(f"{path} lacks the field {architecture}.{key}; download the file again")
            return value

        if fields.get(f"{architecture}.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in self._tensors:
            raise ModelError(
                f"{path} uses rope scaling, which is read from model folders only; name the HF folder or id"
            )
        n_head = int(field("attention.head_count"))
        n_embd = int(field("embedding_length"))
        self.config: dict[str, Any] = {
            "model_type": "llama",
            "hidden_size": n_embd,
            "intermediate_size": int(field("feed_forward_length")),
            "num_hidden_layers": int(field("block_count")),
            "num_attention_heads": n_head,
            "num_key_value_heads": int(field("attention.head_count_kv", n_head)),
            "head_dim": int(field("rope.dimension_count", n_embd // n_head)),
            "rms_norm_eps": float(field("attention.layer_norm_rms_epsilon")),
            "max_position_embeddings": int(field("context_length")),
            "rope_parameters": {"rope_type": "default", "rope_theta": float(field("rope.freq_base", 10000.0))},
            "vocab_size": int(self._tensor("token_embd.weight").shape[1]),
        }

    def _tensor(self, name: str) -> Any:
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelError(f"{self._path} lacks the tensor {name}; download the file again") from None

    def tensor(self, name: str) -> NDArray[np.float32]:
        fixed = {"norm.weight": "output_norm.weight", "embed_tokens.weight": "token_embd.weight"}
        if name in fixed:
            gguf_name = fixed[name]
        else:
            _, layer, rest = name.split(".", 2)
            gguf_name = f"blk.{layer}.{GGUF_NAMES[rest]}"
        stored = self._tensor(gguf_name)
        weight = self._dequantize(stored.data, stored.tensor_type).astype(np.float32, copy=False)
        if name.endswith("q_proj.weight"):
            return unpermute_rope_rows(weight, self.config["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            return unpermute_rope_rows(weight, self.config["num_key_value_heads"])
        return weight


class Shards:
    """The tensors of the safetensors files of a folder, read on demand."""

    def __init__(self, folder: Path) -> None:
        """Read the headers of the files.

        Raises:
            ModelError: A file is damaged, or there is none.
        """
        from safetensors import SafetensorError, safe_open

        self._folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(str(path), framework="numpy") as shard:
                    self._files |= dict.fromkeys(shard.keys(), path)
            except SafetensorError as error:
                raise ModelError(f"{path} is not readable ({error}); download the model again") from None
        if not self._files:
            raise ModelError(f"{folder} holds no safetensors file; convert the model to safetensors first")

    @property
    def names(self) -> list[str]:
        """Names of all tensors in the files."""
        return list(self._files)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor.

        Raises:
            ModelError: The tensor is missing, or has another type than float.
        """
        if name not in self._files:
            raise ModelError(f"{self._folder} lacks the tensor {name}; download the model again")
        return _read_float32(self._files[name], name)


class _SafetensorsWeights:
    def __init__(self, folder: Path) -> None:
        self.config = llm_config(read_config(folder))
        family_of({"model_type": None, **self.config})
        self._shards = Shards(folder)
        names = set(self._shards.names)
        self._prefix = next((prefix for prefix in _PREFIXES if f"{prefix}norm.weight" in names), "")

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._shards.tensor(self._prefix + name)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model folder.

    Raises:
        ModelError: The file is missing or damaged.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no readable config.json ({error}); name a model folder") from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} is no configuration; name a model folder")
    return config


def llm_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the LLM: the whole, or the nested part of a published stack."""
    if config.get("model_type") != STACKED:
        return config
    return next((part for part in config.values() if isinstance(part, dict) and part.get("model_type") in FAMILIES), {})


def _read_float32(path: Path, name: str) -> NDArray[np.float32]:
    """Read a tensor of a safetensors file as float32."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_size))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + header_size + begin)
        data = file.read(end - begin)
    return to_float32(data, entry["dtype"], entry["shape"], f"{path}: tensor {name}")


def to_float32(data: bytes, dtype: str, shape: Sequence[int], origin: str) -> NDArray[np.float32]:
    """Convert the bytes of a tensor in a safetensors file to float32. numpy has no bfloat16.

    Raises:
        ModelError: The tensor has another type than float.
    """
    values: NDArray[np.float32]
    match dtype:
        case "BF16":
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        case "F16":
            values = np.frombuffer(data, "<f2").astype(np.float32)
        case "F32":
            values = np.frombuffer(data, "<f4")
        case _:
            raise ModelError(f"{origin} has type {dtype}; expected F32, F16 or BF16")
    return values.reshape(shape)
