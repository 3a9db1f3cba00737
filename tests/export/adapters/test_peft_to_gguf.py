"""PEFT's adapters as GGUF: llama.cpp wearing one against torch with it, and what cannot be converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from numpy.typing import NDArray

from mtllm_edge import Bundle
from mtllm_edge.backends.llms.llama_cpp import GgufLlm
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing.llama_cpp import PLAIN
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.cli.main import main
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge_export.adapters.peft_to_gguf import convert_peft
from mtllm_edge_export.llms.body import Attention, LlmBody
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_train.checkpoints.llm_weights import open_llm_weights
from tests.fixtures.run_gguf import cosines
from tests.fixtures.tiny_checkpoint import save_llm
from tests.fixtures.tolerances import ENGINES, assert_vectors_close

WIDTH, LAYERS = 64, 3
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def sequences() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((length, WIDTH), dtype=np.float32) for length in (150, 7, 1, 33)]


def save_peft(
    folder: Path, *, wrapped: bool = True, dtype: torch.dtype = torch.float32, **options: Any
) -> peft.PeftModel:
    """A random LoRA on the LLM of `save_llm`, as PEFT saves it; `wrapped` is the LLM with its language head."""
    kind = transformers.LlamaForCausalLM if wrapped else transformers.LlamaModel
    base = kind.from_pretrained(folder / "llm")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, **options})
    model = peft.get_peft_model(base, config)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
            parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder / "peft")
    return model.float()


def torch_pooled(model: peft.PeftModel) -> NDArray[np.float32]:
    body = getattr(model.base_model.model, "model", model.base_model.model).eval()
    with torch.inference_mode():
        rows = [
            body(inputs_embeds=torch.from_numpy(inputs)[None], use_cache=False).last_hidden_state.mean(dim=1)
            for inputs in sequences()
        ]
    return torch.cat(rows).numpy()


def adapted_vectors(folder: Path, attention: Attention = "causal") -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pooled vectors of llama.cpp with the converted adapter, and without."""
    summary = write_llm(folder / "llm.gguf", LlmBody(open_llm_weights(folder / "llm"), None, attention), "f32")
    convert_peft(folder / "peft", folder / "llm.gguf", folder / "adapter.gguf")
    described = LlmSpec(
        architecture=summary.architecture,
        n_embd=WIDTH,
        n_layer=LAYERS,
        quantization="f32",
        attention=attention,
        pooling="mean",
    )
    settings = EngineSettings(*PLAIN, note="test")
    adapters = {"mine": folder / "adapter.gguf"}
    llm = GgufLlm(folder / "llm.gguf", described, settings=settings, threads=1, adapters=adapters)
    try:
        return llm.pool(sequences(), adapter="mine"), llm.pool(sequences())
    finally:
        llm.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"wrapped": False},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "k_proj"], "r": 2, "lora_alpha": 16},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
    ],
    ids=["all", "body alone", "rslora", "q and k", "bfloat16", "float16"],
)
def test_an_applied_adapter_is_torch(options: dict[str, Any], tmp_path: Path) -> None:
    save_llm(tmp_path / "llm", width=WIDTH)
    expected_ND = torch_pooled(save_peft(tmp_path, **options))
    adapted_ND, bare_ND = adapted_vectors(tmp_path)
    assert_vectors_close(adapted_ND, expected_ND, ENGINES)
    assert cosines(expected_ND, bare_ND).min() < 0.99


def test_an_applied_adapter_is_the_merged_file(tmp_path: Path) -> None:
    """Bidirectional, where llama.cpp has an architecture of its own."""
    save_llm(tmp_path / "llm", width=WIDTH)
    save_peft(tmp_path)
    adapted_ND, bare_ND = adapted_vectors(tmp_path, "bidirectional")
    stored = safetensors.numpy.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    lora = {
        name.removeprefix("base_model.model.model.").removesuffix(".weight"): tensor for name, tensor in stored.items()
    }
    body = LlmBody(open_llm_weights(tmp_path / "llm"), None, "bidirectional", lora, 2.0)
    write_llm(tmp_path / "merged.gguf", body, "f32")
    described = LlmSpec(
        architecture="llama-embed",
        n_embd=WIDTH,
        n_layer=LAYERS,
        quantization="f32",
        attention="bidirectional",
        pooling="mean",
    )
    llm = GgufLlm(tmp_path / "merged.gguf", described, settings=EngineSettings(*PLAIN, note="test"), threads=1)
    assert cosines(llm.pool(sequences()), adapted_ND).min() >= 0.9999
    assert cosines(llm.pool(sequences()), bare_ND).min() < 0.99
    llm.close()


def edit(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


def rename(old: str, new: str | None) -> Callable[[Path], None]:
    """Put other words into the tensors' names; None leaves out those that have the old ones."""

    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = safetensors.torch.load_file(path)
        kept = {name: tensor for name, tensor in tensors.items() if new is not None or old not in name}
        safetensors.torch.save_file({name.replace(old, new or ""): tensor for name, tensor in kept.items()}, path)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAST_UP = "layers.2.mlp.up_proj.lora_B"
BAD: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no folder of PEFT": (remove(CONFIG), UsageError, "contains no adapter_config"),
    "no weights": (remove(WEIGHTS), UsageError, "contains no adapter_model"),
    "no json": (write(CONFIG, b"{"), ModelError, "adapter_config.json: "),
    "damaged": (write(WEIGHTS, b"x"), ModelError, "is not readable"),
    "another method": (edit("peft_type", "IA3"), ModelError, "has peft_type 'IA3'"),
    "DoRA": (edit("use_dora", True), ModelError, "has use_dora True"),
    "patterns": (edit("rank_pattern", {"q_proj": 2}), ModelError, r"has rank_pattern \{'q_proj': 2\}"),
    "another rank": (edit("r", 5), ModelError, r"rank 5 in adapter_config.json, but \[4\]"),
    "other tensors": (rename("lora_A", "lora_magnitude_vector"), ModelError, "not part of a LoRA"),
    "no such layer": (rename("layers.2", "layers.9"), ModelError, "matches no layer"),
    "a lone half": (rename(LAST_UP, None), ModelError, "lora_A but not the other matrix"),
    "two adapters": (rename(LAST_UP, "layers.2.mlp.up_proj.lora_A.x"), ModelError, "up_proj.lora_A twice"),
}


@pytest.mark.parametrize(("damage", "kind", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_converted(
    damage: Callable[[Path], object], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    save_llm(tmp_path / "llm", width=WIDTH)
    save_peft(tmp_path)
    write_llm(tmp_path / "llm.gguf", LlmBody(open_llm_weights(tmp_path / "llm"), None, "causal"), "f32")
    damage(tmp_path / "peft")
    with pytest.raises(kind, match=message) as refused:
        convert_peft(tmp_path / "peft", tmp_path / "llm.gguf", tmp_path / "adapter.gguf")
    assert "\n" not in str(refused.value)


def test_the_command_converts_a_folder(float_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Path(shutil.copytree(float_bundle, tmp_path / "bundle"))
    save_llm(tmp_path / "llm", width=WIDTH, layers=2)
    save_peft(tmp_path)
    safetensors.numpy.save_file({"weight": np.ones((2, WIDTH), np.float32)}, tmp_path / "head.safetensors")
    arguments = ["task", "add", str(bundle), "mood", "--head", str(tmp_path / "head.safetensors")]
    arguments += ["--label", "a", "--label", "b", "--adapter", str(tmp_path / "peft")]
    assert main(arguments) == 0, capsys.readouterr().err
    opened = Bundle.open(bundle)
    opened.verify()
    assert opened.manifest.tasks["mood"].adapter == "tasks/mood/adapter.gguf"
    assert main(["classify", "-b", str(bundle), "-t", "mood", "a text"]) == 0
