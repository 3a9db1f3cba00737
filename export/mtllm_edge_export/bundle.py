"""Export a checkpoint as a bundle: load, run torch, convert every part, compare, then rename the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mtllm_edge import __version__
from mtllm_edge.bundle.manifest import (
    BRIDGE_NAME,
    FORMAT_VERSION,
    LLM_QUANTIZATIONS,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    EncoderBackend,
    EncoderSpec,
    GgufQuantization,
    LlmBackend,
    LlmSpec,
    Manifest,
    OnnxQuantization,
    TaskSpec,
)
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.files.atomic import atomic_folder
from mtllm_edge_export.encoders.ctranslate2 import write_encoder
from mtllm_edge_export.encoders.onnx import write_encoder_onnx
from mtllm_edge_export.encoders.spec import EncoderQuantization, encoder_spec
from mtllm_edge_export.licenses import write_licenses
from mtllm_edge_export.llms.body import LlmBody, log_tensor_types
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_export.llms.layer_streaming import is_large, load_streamed_llm
from mtllm_edge_export.llms.onnx import add_llm_onnx, check_size, write_llm_onnx
from mtllm_edge_export.llms.source import open_llm, resolve_checkpoint
from mtllm_edge_export.llms.truncation import prediction_agreement, truncated_checkpoint
from mtllm_edge_export.parity import (
    ReferenceOutputs,
    Sentence,
    check_parity,
    compare_bundle,
    load_sentences,
    torch_reference,
)
from mtllm_edge_export.parts import split
from mtllm_edge_export.parts.embedding_table import split_embedding_table
from mtllm_edge_export.quantization.imatrix import IMATRIX_QUANTIZATIONS, importance_matrix, load_texts
from mtllm_edge_train.checkpoints.config import CONFIG_NAME, StackConfig
from mtllm_edge_train.checkpoints.published import as_checkpoint
from mtllm_edge_train.checkpoints.tensors import read_bridge, read_head, read_lora
from mtllm_edge_train.models.encoder import LoadedEncoder
from mtllm_edge_train.models.loading import load_encoder_and_tokenizer, load_stack
from mtllm_edge_train.models.stack import Stack

Array = NDArray[np.float32]
Log = Callable[[str], None]
LlmQuantization = GgufQuantization | OnnxQuantization
LlmBackendOption = LlmBackend | Literal["both"]

DEFAULT_QUANTIZATIONS: dict[LlmBackend, LlmQuantization] = {"gguf": "q8_0", "onnx": "int8"}


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    encoder_backend: EncoderBackend = "ctranslate2",
    encoder_quantization: EncoderQuantization = "int8",
    llm_backend: LlmBackendOption = "gguf",
    llm_quantization: LlmQuantization | None = None,
    calibration: Path | None = None,
    llm_layers: int | None = None,
    force: bool = False,
    log: Log = lambda _: None,
) -> Manifest:
    """Export a checkpoint as a bundle.

    Args:
        checkpoint: Folder of a trained stack, or folder or hub id of a published one.
        out: Folder to write; it appears once complete, or not at all.
        encoder_backend: Backend of the encoder.
        encoder_quantization: Type of the encoder's weights.
        llm_backend: Backend of the LLM; ONNX is for small LLMs. ``both`` lets the runtime choose the faster one.
        llm_quantization: Type of the LLM's weights; None is ``q8_0`` in GGUF, ``int8`` in ONNX. With both backends, it
            is that of GGUF.
        calibration: File of texts for the importance matrix of a 4-bit LLM; see `imatrix.load_texts`.
        llm_layers: Number of LLM layers to keep, from the first; the log shows the effect. None keeps all.
        force: Replace an existing bundle.
        log: Receives a line at the beginning of each step.

    Returns:
        The manifest, with the comparison of every part with torch.

    Raises:
        UsageError: The checkpoint does not exist, `out` exists, the backend does not support the type, the type does
            not use calibration texts, or the LLM does not have more layers than `llm_layers`.
        ModelError: The checkpoint cannot be exported, or the bundle differs too much from torch.
    """
    first: LlmBackend = "gguf" if llm_backend == "both" else llm_backend
    quantization = llm_quantization or DEFAULT_QUANTIZATIONS[first]
    with ExitStack() as stack:
        full = stack.enter_context(as_checkpoint(resolve_checkpoint(checkpoint)))
        texts = _load_calibration(calibration, quantization)
        source = full
        if llm_layers is not None:
            source = stack.enter_context(truncated_checkpoint(_check_checkpoint(full), llm_layers))
        export = _Export(
            source,
            encoder_backend,
            encoder_quantization,
            first,
            quantization,
            log,
            texts,
            add_onnx=llm_backend == "both",
            full_checkpoint=None if llm_layers is None else full,
        )
        with atomic_folder(out, force=force, marker=MANIFEST_NAME) as folder:
            return export.write(folder, read_lora(source))


def export_parts(
    checkpoint: Path,
    out: Path,
    *,
    encoder_quantization: EncoderQuantization = "int8",
    llm_quantization: GgufQuantization = "q8_0",
    force: bool = False,
    log: Log = lambda _: None,
) -> Manifest:
    """Export a checkpoint without its LLM: the parts name the LLM and contain the adapter in float16.

    The whole bundle is built and compared first, with the float16 adapter, so that `join` builds the same again.
    Arguments, result and errors are those of `export_bundle`; the manifest's `files` are those of the parts. The LLM is
    in GGUF, as `join` runs without torch.
    """
    export = _Export(checkpoint, "ctranslate2", encoder_quantization, "gguf", llm_quantization, log)
    lora = split.round_to_float16(read_lora(checkpoint))
    with atomic_folder(out, force=force, marker=MANIFEST_NAME) as folder:
        manifest = export.write(folder, lora)
        split_embedding_table(folder, export.encoder.word_embeddings)
        return split.split_llm(folder, manifest, export.config, lora, checkpoint, llm_quantization)


def _check_checkpoint(checkpoint: Path) -> Path:
    """Return a checkpoint that has an encoder.

    Raises:
        UsageError: It is not a folder.
        ModelError: It is not a checkpoint, or has only an LLM.
    """
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is not a folder; name the folder of a trained checkpoint")
    if StackConfig.load(checkpoint).encoder is None:
        raise ModelError(f"{checkpoint} is an LLM without an encoder; run task distillation first and export that")
    return checkpoint


def _load_calibration(path: Path | None, quantization: LlmQuantization) -> list[Sentence]:
    if path is None:
        return []
    if quantization not in IMATRIX_QUANTIZATIONS:
        types = ", ".join(IMATRIX_QUANTIZATIONS)
        raise UsageError(f"{quantization} does not use calibration texts; leave them out or choose one of {types}")
    return load_texts(path)


@dataclass(frozen=True)
class _Export:
    """One export: its settings, checked, and its steps."""

    checkpoint: Path
    encoder_backend: EncoderBackend
    encoder_quantization: EncoderQuantization
    llm_backend: LlmBackend
    llm_quantization: LlmQuantization
    log: Log
    calibration: Sequence[Sentence] = ()
    add_onnx: bool = False
    """Whether to write the LLM in ONNX in addition to GGUF."""
    full_checkpoint: Path | None = None
    """The checkpoint before truncation; None if it was not truncated."""

    def __post_init__(self) -> None:
        allowed = LLM_QUANTIZATIONS[self.llm_backend]
        if self.llm_quantization not in allowed:
            raise UsageError(
                f"an LLM in {self.llm_backend} cannot be {self.llm_quantization}; choose one of {', '.join(allowed)}"
            )
        _check_checkpoint(self.checkpoint)

    @cached_property
    def config(self) -> StackConfig:
        return StackConfig.load(self.checkpoint)

    @cached_property
    def encoder(self) -> LoadedEncoder:
        encoder: LoadedEncoder = load_encoder_and_tokenizer(self.checkpoint, self.config)[0]
        return encoder

    @property
    def max_tokens(self) -> int:
        assert self.config.encoder is not None  # checked in `__post_init__`
        return self.config.encoder.max_tokens

    def write(self, folder: Path, lora: dict[str, Array]) -> Manifest:
        """Write the bundle with this adapter into an empty folder, and compare it with torch."""
        body = self._llm_body(lora)
        if self.llm_backend == "onnx" or self.add_onnx:
            check_size(body)  # before torch loads it
        reference, importance = self._run_torch(body)
        self.log(f"writing the encoder ({self.encoder.family}, {self.encoder_quantization})")
        encoder = self._write_encoder(folder, reference)
        (folder / TOKENIZER_NAME).write_text(self.encoder.tokenizer_json, encoding="utf-8")
        self.log(f"writing the LLM ({self.config.llm.attention}, {self.llm_quantization})")
        llm = self._write_llm(folder, body, reference, importance)
        llm_onnx = add_llm_onnx(folder, body, llm, reference.inputs_GD, self.log) if self.add_onnx else None
        manifest = self._write_rest(folder, encoder, llm, llm_onnx)
        self.log("comparing the bundle with torch")
        return self._compare(folder, manifest, reference)

    def _run_torch(self, body: LlmBody) -> tuple[ReferenceOutputs, dict[str, Array]]:
        """Return torch's outputs and the importance matrix; torch's copy of the LLM is freed on return."""
        self.log("loading the checkpoint in torch")
        sentences, languages = load_sentences(), self.encoder.languages
        kinds = {name: task.kind for name, task in self.config.tasks.items()}
        stack = self._load_stack(body)
        self.log(f"running torch on {len(sentences)} sentences")
        reference = torch_reference(stack, sentences, languages, kinds)
        importance = {}
        if self.calibration:
            self.log(f"running torch on {len(self.calibration)} calibration texts")
            importance = importance_matrix(stack, self.calibration, languages)
        del stack
        if self.full_checkpoint is not None:
            full = replace(self, checkpoint=self.full_checkpoint)
            full_stack = full._load_stack(full._llm_body(read_lora(full.checkpoint)))
            self._log_agreement(torch_reference(full_stack, sentences, languages, kinds), reference)
        return reference, importance

    def _load_stack(self, body: LlmBody) -> Stack:
        return load_stack(self.checkpoint, load_streamed_llm(body) if is_large(body) else None)

    def _log_agreement(self, full: ReferenceOutputs, truncated: ReferenceOutputs) -> None:
        for task, share in prediction_agreement(full, truncated).items():
            self.log(
                f"with {self.config.llm.layers} layers, task {task} has the same prediction for {share:.0%} of the "
                "packaged sentences as with all; fit its head again, or measure it with `mtllm-edge eval`"
            )

    def _llm_body(self, lora: dict[str, Array]) -> LlmBody:
        return LlmBody(
            weights=open_llm(self.config.llm.source, self.checkpoint),
            layers=self.config.llm.layers,
            attention=self.config.llm.attention,
            lora=lora,
            lora_scale=self.config.lora.scale if self.config.lora is not None else 0.0,
            max_tokens=-(-self.max_tokens // self.config.bridge.stride),
        )

    def _write_encoder(self, folder: Path, reference: ReferenceOutputs) -> EncoderSpec:
        spec = encoder_spec(self.encoder, self.encoder_backend, self.encoder_quantization, max_tokens=self.max_tokens)
        if self.encoder_backend == "ctranslate2":
            write_encoder(self.encoder, folder / spec.path, self.encoder_quantization)
            return spec
        matrices = write_encoder_onnx(folder / spec.path, self.encoder, self.encoder_quantization, reference.ids)
        if matrices:
            self.log(f"matrices of the encoder kept in float32 to preserve its states: {', '.join(matrices)}")
        return msgspec.structs.replace(spec, float32_matrices=matrices)

    def _write_llm(
        self, folder: Path, body: LlmBody, reference: ReferenceOutputs, importance: dict[str, Array]
    ) -> LlmSpec:
        path, quantization = folder / f"llm.{self.llm_backend}", self.llm_quantization
        if quantization == "int8" or (self.llm_backend == "onnx" and quantization == "f32"):
            summary = write_llm_onnx(path, body, quantization, reference.inputs_GD)
        else:
            summary = write_llm(path, body, quantization, importance)
        log_tensor_types(summary, self.log)
        return summary.spec(quantization, body.attention, self.llm_backend)

    def _write_rest(self, folder: Path, encoder: EncoderSpec, llm: LlmSpec, llm_onnx: LlmSpec | None) -> Manifest:
        """Write bridge, heads and licenses, and return a manifest without comparison."""
        weight, bias = read_bridge(self.checkpoint)
        save_file({"weight": weight, "bias": bias}, folder / BRIDGE_NAME)
        tasks = {name: self._write_task(folder, name) for name in self.config.tasks}
        if not self.config.sources:
            self.log(f"the licenses are unknown: {self.checkpoint / CONFIG_NAME} lists no sources")
        sources = write_licenses(folder, self.config.sources, self.checkpoint)
        return Manifest(
            format_version=FORMAT_VERSION,
            name=self.config.name,
            created_with=f"mtllm-edge {__version__}",
            encoder=encoder,
            bridge=self.config.bridge,
            llm=llm,
            tasks=tasks,
            languages=self.encoder.languages,
            sources=sources,
            parity=(),
            files=list_files(folder),
            llm_onnx=llm_onnx,
        )

    def _write_task(self, folder: Path, name: str) -> TaskSpec:
        weight, bias = read_head(self.checkpoint, name)
        path = folder / "tasks" / name / "head.safetensors"
        path.parent.mkdir(parents=True)
        save_file({"weight": weight} if bias is None else {"weight": weight, "bias": bias}, path)
        task = self.config.tasks[name]
        return TaskSpec(kind=task.kind, labels=task.labels, head=path.relative_to(folder).as_posix())

    def _compare(self, folder: Path, manifest: Manifest, reference: ReferenceOutputs) -> Manifest:
        """Compare with torch, check the result, and write the manifest with it."""
        (folder / MANIFEST_NAME).write_bytes(manifest.to_json())  # the runtime needs it to open the bundle
        parity = compare_bundle(folder, reference, llm_backend=self.llm_backend)
        if self.add_onnx:
            parity += tuple(
                msgspec.structs.replace(row, component=f"{row.component}, onnx")
                for row in compare_bundle(folder, reference, llm_backend="onnx")
                if row.component != "encoder"
            )
        quantized = (self.encoder_quantization, self.llm_quantization) != ("float32", "f32")
        check_parity(parity, quantized=quantized)
        manifest = msgspec.structs.replace(manifest, parity=parity)
        (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
        return manifest
