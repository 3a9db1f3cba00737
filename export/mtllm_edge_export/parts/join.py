"""Complete parts with their LLM. Requires numpy and gguf; torch only for the LLM in ONNX."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from mtllm_edge.bundle.manifest import MANIFEST_NAME, Manifest
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.embedder import Embedder
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.files.atomic import atomic_folder
from mtllm_edge_export.llms.body import LlmBody
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_export.llms.source import open_llm, source_digest
from mtllm_edge_export.parts.embedding_table import EMBEDDINGS_NAME, join_embedding_table
from mtllm_edge_export.parts.split import RECIPE_NAME, LlmRecipe
from mtllm_edge_train.checkpoints.config import LORA_NAME
from mtllm_edge_train.checkpoints.tensors import read_lora


def join(
    parts: Path,
    out: Path,
    *,
    add_onnx: bool = False,
    force: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Build a bundle from parts made by `export --without-llm` and the LLM that they name.

    Args:
        parts: Folder of parts; the SHA-256 of every file is verified first.
        out: Folder to write; it appears once complete, or not at all.
        add_onnx: Write the LLM in ONNX in addition to GGUF, which requires torch.
        force: Replace an existing bundle.
        log: Receives a line at the beginning of each step.

    Returns:
        The bundle's manifest.

    Raises:
        UsageError: `parts` is not a folder, or `out` exists.
        ModelError: The parts are damaged, or the LLM is not installed or not the one that they were trained on.
    """
    log("verifying the parts")
    manifest, recipe = _open_parts(parts)
    log(f"reading {recipe.source}")
    weights = open_llm(recipe.source, parts)
    digest = source_digest(recipe.source, parts)
    if digest != recipe.source_sha256:
        raise ModelError(
            f"{recipe.source} has SHA-256 {digest}, but {parts} was trained on {recipe.source_sha256}; "
            "install the release that the parts were made with"
        )
    lora = read_lora(parts) if LORA_NAME in manifest.files else {}
    max_tokens = -(-manifest.encoder.max_tokens // manifest.bridge.stride)
    body = LlmBody(weights, recipe.layers, recipe.attention, lora, recipe.lora_scale, max_tokens)
    with atomic_folder(out, force=force, marker=MANIFEST_NAME) as folder:
        for name in manifest.files.keys() - {RECIPE_NAME, LORA_NAME}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parts / name, folder / name)
        if EMBEDDINGS_NAME in manifest.files:
            log("writing the encoder")
            join_embedding_table(folder)
        log(f"writing the LLM ({recipe.attention}, {recipe.quantization})")
        write_llm(folder / manifest.llm.file, body, recipe.quantization)
        manifest = _write_manifest(folder, manifest)
        Bundle.open(folder)  # checks widths and counts of the new llm.gguf against the manifest
        return _add_onnx(folder, manifest, body, log) if add_onnx else manifest


def _write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write and return the manifest with the folder's files."""
    manifest = msgspec.structs.replace(manifest, files=list_files(folder))
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest


def _add_onnx(folder: Path, manifest: Manifest, body: LlmBody, log: Callable[[str], None]) -> Manifest:
    """Add the LLM in ONNX to a bundle, and compare it with GGUF on the packaged sentences."""
    from mtllm_edge_export.llms.onnx import add_llm_onnx
    from mtllm_edge_export.parity import compare_vectors, encoder_language, load_sentences

    with Embedder.load(folder) as embedder:
        encoded = [
            embedder.encode([sentence.text], language=encoder_language(sentence.language, manifest.languages))[0]
            for sentence in load_sentences()
        ]
        inputs = [embedder._llm_inputs([text])[0] for text in encoded]
        gguf_ND = np.concatenate([embedder.pool([text]) for text in encoded])
    llm_onnx = add_llm_onnx(folder, body, manifest.llm, inputs, log)
    manifest = _write_manifest(folder, msgspec.structs.replace(manifest, llm_onnx=llm_onnx))
    with Embedder.load(folder, llm_backend="onnx") as embedder:
        onnx_ND = np.concatenate([embedder.pool([text]) for text in encoded])
    parity = (*manifest.parity, compare_vectors("stack, onnx against gguf", gguf_ND, onnx_ND))
    return _write_manifest(folder, msgspec.structs.replace(manifest, parity=parity))


def _open_parts(parts: Path) -> tuple[Manifest, LlmRecipe]:
    if not parts.is_dir():
        raise UsageError(f"{parts} is not a folder; name a folder made by export --without-llm")
    path = parts / MANIFEST_NAME
    if not path.is_file():
        raise ModelError(f"{parts} contains no {MANIFEST_NAME}; name a folder made by export --without-llm")
    manifest = parse_manifest(path.read_bytes(), origin=str(path))
    if manifest.llm.file in manifest.files:
        raise UsageError(f"{parts} is a complete bundle; there is nothing to join")
    if RECIPE_NAME not in manifest.files:
        raise ModelError(f"{path} does not list {RECIPE_NAME}; name a folder made by export --without-llm")
    Bundle(parts, manifest).verify()
    return manifest, LlmRecipe.load(parts)
