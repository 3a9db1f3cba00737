"""Convert a PEFT LoRA to a GGUF adapter for one task of a bundle. Requires no torch.

The adapter is not merged: one LLM serves many tasks. llama.cpp adds ``alpha / rank * (B @ A) @ x`` to the product of a
matrix, so the rows of B have the order of that matrix's rows, which llama.cpp permutes for q and k of a Llama.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import safetensors
from numpy.typing import NDArray

from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.bundle.formats.gguf import GgufHeader, read_header
from mtllm_edge.bundle.formats.gguf_lora_schema import ALPHA, adapter_problems
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge_export.adapters.merge import check_lora
from mtllm_edge_train.checkpoints.llm_families import GGUF_NAMES
from mtllm_edge_train.checkpoints.llm_weights import permute_rope_rows, to_float32

Array = NDArray[np.float32]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_ARCHITECTURES = ("llama", "llama-embed")
"""Architectures with permuted rows of q and k, and all other matrices as in transformers."""
_TENSOR = re.compile(r"(?:.*\.)?(layers\.\d+\.\w+\.\w+)\.lora_(A|B)(?:\.\w+)?\.weight")


class PeftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The relevant keys of `adapter_config.json`; PEFT adds keys with every version."""

    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: dict[str, Any] = {}
    alpha_pattern: dict[str, Any] = {}
    modules_to_save: list[str] | None = None

    @property
    def alpha(self) -> float:
        """GGUF's alpha: llama.cpp scales ``B @ A`` by alpha / rank."""
        return self.lora_alpha * (math.sqrt(self.r) if self.use_rslora else 1.0)


def convert_peft(folder: Path, llm: Path, out: Path) -> None:
    """Convert a PEFT folder to a GGUF adapter.

    Args:
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        llm: The LLM's GGUF file.
        out: The file to write.

    Raises:
        UsageError: The folder is missing, or is not a PEFT folder.
        ModelError: The adapter is not a plain LoRA or does not fit the LLM, or the LLM's family is not supported.
    """
    config = _read_config(folder / CONFIG_NAME)
    lora = _read_tensors(folder / WEIGHTS_NAME)
    try:
        base = read_header(llm)
    except DamagedFileError as error:
        raise ModelError(f"{llm}: {error}; export the bundle again") from None
    architecture = base.fields.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ModelError(f"{llm} has architecture {architecture!r}; adapters can be converted for Llama only")
    matrices = _matrices(base)
    check_lora(lora, {f"{module}.weight": shape for module, (_, shape) in matrices.items()})
    ranks = {tensor.shape[0] for name, tensor in lora.items() if name.endswith("_A")}
    if ranks != {config.r}:
        raise ModelError(f"{folder} has rank {config.r} in {CONFIG_NAME}, but {sorted(ranks)} in its tensors")
    with contextlib.redirect_stdout(io.StringIO()):  # the writer's progress
        _write(out, str(architecture), config.alpha, lora, base)
    problems = adapter_problems(out, base, str(architecture))
    if problems:
        raise ModelError(f"{folder}: {'; '.join(problems)}; use the adapter of this LLM")


def _write(out: Path, architecture: str, alpha: float, lora: dict[str, Array], base: GgufHeader) -> None:
    writer = gguf.GGUFWriter(out, architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(ALPHA, alpha)
        heads = {"q_proj": "attention.head_count", "k_proj": "attention.head_count_kv"}
        for name, tensor in sorted(lora.items()):
            module, _, half = name.rpartition(".lora_")
            projection = module.rpartition(".")[2]
            if half == "B" and projection in heads:
                tensor = permute_rope_rows(tensor, _count(base, f"{architecture}.{heads[projection]}"))
            stored, _ = _matrices(base)[module]
            writer.add_tensor(f"{stored}.lora_{half.lower()}", np.ascontiguousarray(tensor, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _matrices(base: GgufHeader) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return transformers' name of every matrix of the layers -> GGUF's name and shape (out, in)."""
    names = {stored: name.removesuffix(".weight") for name, stored in GGUF_NAMES.items()}
    matrices: dict[str, tuple[str, tuple[int, ...]]] = {}
    for stored, shape in base.shapes.items():
        block, _, rest = stored.partition(".")
        layer, _, rest = rest.partition(".")
        if block == "blk" and rest in names and len(shape) == 2:
            matrices[f"layers.{layer}.{names[rest]}"] = (stored, shape[::-1])
    return matrices


def _count(base: GgufHeader, key: str) -> int:
    value = base.fields.get(key)
    if not isinstance(value, int):
        raise ModelError(f"the LLM's file has {value!r} for {key}; export the bundle again")
    return value


def _read_config(path: Path) -> PeftConfig:
    if not path.is_file():
        raise UsageError(f"{path.parent} contains no {CONFIG_NAME}; name a PEFT folder or a GGUF adapter")
    try:
        config = msgspec.json.decode(path.read_bytes(), type=PeftConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: {error}; save the adapter again") from None
    unsupported = {
        "peft_type": config.peft_type != "LORA",
        "use_dora": config.use_dora,
        "fan_in_fan_out": config.fan_in_fan_out,
        "bias": config.bias != "none",
        "rank_pattern": bool(config.rank_pattern),
        "alpha_pattern": bool(config.alpha_pattern),
        "modules_to_save": bool(config.modules_to_save),
    }
    if any(unsupported.values()):
        settings = ", ".join(f"{key} {getattr(config, key)!r}" for key, is_set in unsupported.items() if is_set)
        raise ModelError(f"{path} has {settings}, which GGUF adapters do not support; train a plain LoRA")
    if config.r < 1 or not math.isfinite(config.lora_alpha) or config.lora_alpha <= 0:
        raise ModelError(f"{path} has r {config.r} and lora_alpha {config.lora_alpha}, expected above 0")
    return config


def _read_tensors(path: Path) -> dict[str, Array]:
    """Return ``layers.<i>.<module>.lora_A`` (rank, in) and ``.lora_B`` (out, rank) in float32."""
    try:
        stored: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise UsageError(f"{path.parent} contains no {path.name}; name a PEFT folder") from None
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} is not readable ({error}); save the adapter again") from None
    lora = {}
    for name, tensor in stored:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise ModelError(f"{path}: tensor {name} is not part of a LoRA on the layers' matrices; train a plain LoRA")
        plain = f"{match[1]}.lora_{match[2]}"
        if plain in lora:
            raise ModelError(f"{path} contains {plain} twice; save one adapter only")
        lora[plain] = to_float32(tensor["data"], tensor["dtype"], tensor["shape"], f"{path}: {name}")
        if not np.isfinite(lora[plain]).all():
            raise ModelError(f"{path}: {name} has non-finite values; train the adapter again")
    return lora
