"""Shipped parts and an LLM from elsewhere become a bundle. Needs numpy and gguf; torch only for the LLM's ONNX form."""

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
    both_forms: bool = False,
    force: bool = False,
    log: Callable[[str], None] | None = None,
) -> Manifest:
    """Build a bundle from parts made by `export --without-llm` and the LLM that they name.

    Args:
        parts: The parts folder; every file's SHA-256 is checked first.
        out: Folder to write; it appears when everything is done, or not at all.
        both_forms: Write the LLM for ONNX Runtime, too, which needs torch.
        force: Replace an existing bundle.
        log: Told each step as it begins.

    Returns:
        The bundle's manifest.

    Raises:
        UsageError: No folder there, or `out` exists.
        ModelError: The parts are damaged, or the LLM is not installed or not the one that they were trained on.
    """
    log = log or (lambda _: None)
    log("verifying the parts")
    manifest, recipe = _open_parts(parts)
    log(f"reading {recipe.source}")
    weights = open_llm(recipe.source, parts)
    found = source_digest(recipe.source, parts)
    if found != recipe.source_sha256:
        raise ModelError(
            f"{recipe.source} has SHA-256 {found}, but {parts} was trained on {recipe.source_sha256}; "
            "install the release of it that the parts were made with"
        )
    lora = read_lora(parts) if LORA_NAME in manifest.files else {}
    longest = -(-manifest.encoder.max_tokens // manifest.bridge.stride)
    body = LlmBody(weights, recipe.layers, recipe.attention, lora, recipe.lora_scale, longest)
    with atomic_folder(out, force=force, marker=MANIFEST_NAME) as folder:
        for name in manifest.files.keys() - {RECIPE_NAME, LORA_NAME}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parts / name, folder / name)
        if EMBEDDINGS_NAME in manifest.files:
            log("writing the encoder")
            join_embedding_table(folder)
        log(f"writing the LLM ({recipe.attention}, {recipe.quantization})")
        write_llm(folder / manifest.llm.file, body, recipe.quantization)
        manifest = msgspec.structs.replace(manifest, files=list_files(folder))
        (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
        Bundle.open(folder)  # widths and counts of the new llm.gguf are those of the manifest
        if both_forms:
            manifest = _add_onnx(folder, body, log)
    return manifest


def _add_onnx(folder: Path, body: LlmBody, log: Callable[[str], None]) -> Manifest:
    """Give a whole bundle the second form of its LLM, measured on what its own encoder makes of real sentences."""
    from mtllm_edge_export.llms.onnx import add_llm_onnx
    from mtllm_edge_export.parity import encoder_language, load_sentences, measure

    sentences = load_sentences()
    with Embedder.load(folder) as embedder:
        codes = embedder.bundle.manifest.languages
        encoded = [
            embedder.encode([sentence.text], language=encoder_language(sentence.language, codes))[0]
            for sentence in sentences
        ]
        inputs = [embedder._llm_inputs([text])[0] for text in encoded]
        gguf_ND = np.concatenate([embedder.pool([text]) for text in encoded])
    manifest = embedder.bundle.manifest
    manifest = msgspec.structs.replace(manifest, llm_onnx=add_llm_onnx(folder, body, manifest.llm, inputs, log))
    manifest = msgspec.structs.replace(manifest, files=list_files(folder))
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    with Embedder.load(folder, llm_backend="onnx") as embedder:
        onnx_ND = np.concatenate([embedder.pool([text]) for text in encoded])
    parity = (*manifest.parity, measure("stack, onnx against gguf", gguf_ND, onnx_ND))
    manifest = msgspec.structs.replace(manifest, parity=parity)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest


def _open_parts(parts: Path) -> tuple[Manifest, LlmRecipe]:
    if not parts.is_dir():
        raise UsageError(f"{parts} is not a folder; name a folder made by export --without-llm")
    path = parts / MANIFEST_NAME
    if not path.is_file():
        raise ModelError(f"{parts} holds no {MANIFEST_NAME}; name a folder made by export --without-llm")
    manifest = parse_manifest(path.read_bytes(), origin=str(path))
    if manifest.llm.file in manifest.files:
        raise UsageError(f"{parts} is a whole bundle already; there is nothing to join")
    if RECIPE_NAME not in manifest.files:
        raise ModelError(f"{path} does not list {RECIPE_NAME}; name a folder made by export --without-llm")
    Bundle(parts, manifest).verify()
    return manifest, LlmRecipe.load(parts)
