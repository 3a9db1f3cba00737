"""The layout of the published 8 B stack, exported without running the code that lies in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtllm_edge import Bundle, Embedder
from mtllm_edge.errors import ModelError
from mtllm_edge_export.bundle import export_bundle
from tests.fixtures.run_gguf import cosines
from tests.fixtures.tiny_published import SHARDS, PublishedModules, save_published

TEXTS = ["Hallo Welt", "x", "Das Wetter ist heute sehr schön, und morgen auch."]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PublishedModules]:
    folder = tmp_path_factory.mktemp("published") / "tiny-nllb-llm2vec"
    return folder, save_published(folder)


def torch_vectors(bundle: Path, modules: PublishedModules) -> NDArray[np.float32]:
    """Encoder, up-projection, and the LLM with every token seeing every other."""
    rows = []
    with Embedder.load(bundle, threads=1) as embedder, torch.inference_mode():
        for encoded in embedder.encode(TEXTS, language="deu_Latn"):
            states_1LE = modules.encoder(input_ids=torch.tensor([encoded.ids])).last_hidden_state
            length = states_1LE.shape[1]
            everything = torch.zeros(1, 1, length, length)
            hidden_1LD = modules.llm(inputs_embeds=modules.up_proj(states_1LE), attention_mask=everything)
            rows.append(hidden_1LD.last_hidden_state[0].mean(0).numpy())
    return np.stack(rows)


def test_a_published_stack_becomes_a_bundle(published: tuple[Path, PublishedModules], tmp_path: Path) -> None:
    folder, modules = published
    assert len(list(folder.glob("*.safetensors"))) == SHARDS
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    out = tmp_path / "bundle"
    manifest = export_bundle(folder, out, encoder_quantization="float32", llm_quantization="f32")
    Bundle.open(out).verify()
    assert (manifest.name, manifest.tasks) == ("tiny-nllb-llm2vec", {})
    assert (manifest.llm.architecture, manifest.llm.attention, manifest.llm.n_layer) == (
        "llama-embed",
        "bidirectional",
        2,
    )
    assert manifest.encoder.prefix_tokens == ("{language}",)
    assert "CC-BY-NC-4.0" in {source.license for source in manifest.sources}
    assert min(row.cosine_min for row in manifest.parity) >= 0.9999
    with Embedder.load(out, threads=1) as embedder:
        found_ND = embedder.embed(TEXTS, language="deu_Latn")
    assert cosines(torch_vectors(out, modules), found_ND).min() >= 0.9999
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_hub_id_is_fetched_with_its_tokenizer(
    published: tuple[Path, PublishedModules], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(published[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    manifest = export_bundle(Path("someone/stack-8B"), tmp_path / "bundle")
    assert (asked["name"], manifest.llm.quantization) == ("someone/stack-8B", "q8_0")
    assert {"config.json", "*.safetensors", "tokenizer*"} <= set(asked["allow_patterns"])
    assert not any(pattern.endswith(".py") for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("nllb_encoder.embed_tokens", "lacks the tensor nllb_encoder.embed_tokens.weight"),
        ("up_proj.weight", "lacks the tensor up_proj.weight"),
        ("llm2vec.layers.1.mlp.up_proj", r"lacks the tensor llm2vec.layers.1.mlp.up_proj.weight"),
        ("nllb_config", "nests no m2m_100 configuration"),
        ("llm2vec_config", "is a None model"),
    ],
)
def test_an_incomplete_one_is_one_line(part: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    save_published(folder)
    if part.endswith("_config"):
        config = json.loads((folder / "config.json").read_bytes())
        del config[part]
        (folder / "config.json").write_text(json.dumps(config))
    else:
        for path in folder.glob("*.safetensors"):
            _rename_tensors(path, part)
    with pytest.raises(ModelError, match=message) as caught:
        export_bundle(folder, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def _rename_tensors(path: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {f"lost.{name}" if name.startswith(part) else name: t for name, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
