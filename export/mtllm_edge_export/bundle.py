"""A checkpoint becomes a bundle: load, run torch, convert every part, compare, and only then take the name."""

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
from mtllm_edge.bundle.layout import BRIDGE_NAME, TOKENIZER_NAME
from mtllm_edge.bundle.manifest import (
    FORMAT_VERSION,
    LLM_QUANTIZATIONS,
    MANIFEST_NAME,
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
from mtllm_edge_export.encoders.ctranslate2 import EncoderQuantization, write_encoder
from mtllm_edge_export.encoders.onnx import write_encoder_onnx
from mtllm_edge_export.licenses import write_licenses
from mtllm_edge_export.llms.body import LlmBody, log_tensor_types
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_export.llms.layer_streaming import is_large, load_streamed_llm
from mtllm_edge_export.llms.onnx import add_llm_onnx, check_size, write_llm_onnx
from mtllm_edge_export.llms.source import open_llm, resolve_checkpoint
from mtllm_edge_export.llms.truncation import prediction_agreement, truncated_checkpoint
from mtllm_edge_export.parity import ReferenceOutputs, Sentence, check_parity, compare, load_sentences, torch_reference
from mtllm_edge_export.parts import split
from mtllm_edge_export.parts.embedding_table import split_embedding_table
from mtllm_edge_export.quantization.imatrix import QUANTIZATIONS, importance, load_texts
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

DEFAULTS: dict[LlmBackend, LlmQuantization] = {"gguf": "q8_0", "onnx": "int8"}
"""Type of the LLM's weights in each of its forms."""


def _silent(_: str) -> None:
    pass


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
    log: Log = _silent,
) -> Manifest:
    """Compile a checkpoint into a bundle.

    Args:
        checkpoint: Folder of a trained stack, or folder or hub id of a published one.
        out: Folder to write; it appears when everything is done, or not at all.
        encoder_backend: Form of the encoder.
        encoder_quantization: Type of the encoder's weights.
        llm_backend: Form of the LLM; ONNX is for small ones. Of a bundle with both, the faster one is run.
        llm_quantization: Type of the LLM's weights; None is ``q8_0`` in GGUF, ``int8`` in ONNX. Of both forms, GGUF's.
        calibration: Texts whose activations tell which weights of a 4-bit LLM matter; see `importance.load_texts`.
        llm_layers: Keep the LLM's first layers only; the log tells what that changes. None keeps all.
        force: Replace an existing bundle.
        log: Told each step as it begins.

    Returns:
        The manifest, with the comparison of every part with torch.

    Raises:
        UsageError: No checkpoint there, `out` exists, the LLM's form has no such type, the type no use for texts, or
            the LLM has no more layers than are kept.
        ModelError: The checkpoint cannot be exported, or the result does not follow torch.
    """
    first: LlmBackend = "gguf" if llm_backend == "both" else llm_backend
    quantization = llm_quantization or DEFAULTS[first]
    with ExitStack() as opened:
        trained = whole = opened.enter_context(as_checkpoint(resolve_checkpoint(checkpoint)))
        texts, both = _texts(calibration, quantization), llm_backend == "both"
        if llm_layers is not None:
            trained = opened.enter_context(truncated_checkpoint(_checked(whole), llm_layers))
        job = _Export.open(trained, encoder_backend, encoder_quantization, first, quantization, log, texts, both=both)
        with atomic_folder(out, force=force, marker=MANIFEST_NAME) as folder:
            return job.write(folder, lora=read_lora(trained), whole=None if llm_layers is None else whole)


def _checked(checkpoint: Path) -> Path:
    """A checkpoint with an encoder.

    Raises:
        UsageError: No folder.
        ModelError: Not a checkpoint, or one of an LLM alone.
    """
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is not a folder; name the folder of a trained checkpoint")
    if StackConfig.load(checkpoint).encoder is None:
        raise ModelError(f"{checkpoint} is an LLM without an encoder; run task distillation first and export that")
    return checkpoint


def _texts(calibration: Path | None, quantization: LlmQuantization) -> list[Sentence]:
    if calibration is None:
        return []
    if quantization not in QUANTIZATIONS:
        types = ", ".join(QUANTIZATIONS)
        raise UsageError(f"{quantization} makes no use of calibration texts; leave them out or choose one of {types}")
    return load_texts(calibration)


def export_parts(
    checkpoint: Path,
    out: Path,
    *,
    encoder_quantization: EncoderQuantization = "int8",
    llm_quantization: GgufQuantization = "q8_0",
    force: bool = False,
    log: Log = _silent,
) -> Manifest:
    """Compile a checkpoint, but ship the LLM as a recipe: where it comes from, and the adapter in float16.

    The whole bundle is built and compared first, from the same rounded adapter that is shipped; `join` builds it again.
    Arguments, result and errors are those of `export_bundle`; the manifest's `files` are those of the parts. The LLM is
    GGUF: `join`, which has no torch, can write no other.
    """
    job = _Export.open(checkpoint, "ctranslate2", encoder_quantization, "gguf", llm_quantization, log)
    lora = split.round_to_float16(read_lora(checkpoint))
    with atomic_folder(out, force=force, marker=MANIFEST_NAME) as folder:
        manifest = job.write(folder, lora=lora)
        split_embedding_table(folder, job.encoder.word_embeddings)
        return split.split_llm(folder, manifest, job.config, lora, checkpoint, llm_quantization)


@dataclass(frozen=True)
class _Export:
    checkpoint: Path
    config: StackConfig
    encoder_backend: EncoderBackend
    encoder_quantization: EncoderQuantization
    llm_backend: LlmBackend
    llm_quantization: LlmQuantization
    log: Log
    calibration: Sequence[Sentence] = ()
    both: bool = False
    """Whether the LLM is written in ONNX, too."""

    @classmethod
    def open(
        cls,
        checkpoint: Path,
        encoder_backend: EncoderBackend,
        encoder_quantization: EncoderQuantization,
        llm_backend: LlmBackend,
        llm_quantization: LlmQuantization,
        log: Log,
        calibration: Sequence[Sentence] = (),
        *,
        both: bool = False,
    ) -> _Export:
        allowed = LLM_QUANTIZATIONS[llm_backend]
        if llm_quantization not in allowed:
            raise UsageError(
                f"an LLM in {llm_backend} cannot be {llm_quantization}; choose one of {', '.join(allowed)}"
            )
        return cls(
            _checked(checkpoint),
            StackConfig.load(checkpoint),
            encoder_backend,
            encoder_quantization,
            llm_backend,
            llm_quantization,
            log,
            calibration,
            both,
        )

    @cached_property
    def encoder(self) -> LoadedEncoder:
        encoder: LoadedEncoder = load_encoder_and_tokenizer(self.checkpoint, self.config)[0]
        return encoder

    def write(self, folder: Path, *, lora: dict[str, Array], whole: Path | None = None) -> Manifest:
        """Fill an empty folder; torch's copy of the LLM is let go before the files are written.

        Args:
            folder: The folder.
            lora: The adapter.
            whole: The checkpoint that this one was cut from.
        """
        body = self._llm_body(lora)
        if self.llm_backend == "onnx" or self.both:
            check_size(body)  # before torch loads it
        self.log("loading the checkpoint in torch")
        sentences = load_sentences()
        encoder = self.encoder
        stack = self._torch_stack(body)
        self.log(f"running torch on {len(sentences)} sentences")
        kinds = {name: task.kind for name, task in self.config.tasks.items()}
        reference = torch_reference(stack, sentences, encoder.languages, kinds)
        weights = {}
        if self.calibration:
            self.log(f"running torch on {len(self.calibration)} calibration texts")
            weights = importance(stack, self.calibration, encoder.languages)
        del stack
        if whole is not None:
            uncut = replace(self, checkpoint=whole, config=StackConfig.load(whole))
            stack = uncut._torch_stack(uncut._llm_body(read_lora(whole)))
            self._tell_agreement(torch_reference(stack, sentences, encoder.languages, kinds), reference)
            del stack
        self.log(f"writing the encoder ({encoder.family}, {self.encoder_quantization})")
        written = self._write_encoder(folder, encoder, reference)
        (folder / TOKENIZER_NAME).write_text(encoder.tokenizer_json, encoding="utf-8")
        self.log(f"writing the LLM ({self.config.llm.attention}, {self.llm_quantization})")
        llm = self._write_llm(folder, body, reference, weights)
        llm_onnx = add_llm_onnx(folder, body, llm, reference.inputs_GD, self.log) if self.both else None
        manifest = self._write_rest(folder, encoder.languages, written, llm, llm_onnx)
        self.log("comparing the bundle with torch")
        return self._compared(folder, manifest, reference)

    def _torch_stack(self, body: LlmBody) -> Stack:
        return load_stack(self.checkpoint, load_streamed_llm(body) if is_large(body) else None)

    def _tell_agreement(self, whole: ReferenceOutputs, short: ReferenceOutputs) -> None:
        for task, share in prediction_agreement(whole, short).items():
            self.log(
                f"with {self.config.llm.layers} layers, task {task} answers {share:.0%} of the packaged sentences "
                "as with all; fit its head again, or measure it with `mtllm-edge eval`"
            )

    def _llm_body(self, lora: dict[str, Array]) -> LlmBody:
        assert self.config.encoder is not None  # checked in `open`
        return LlmBody(
            weights=open_llm(self.config.llm.source, self.checkpoint),
            layers=self.config.llm.layers,
            attention=self.config.llm.attention,
            lora=lora,
            lora_scale=self.config.lora.scale if self.config.lora is not None else 0.0,
            longest=-(-self.config.encoder.max_tokens // self.config.bridge.stride),
        )

    def _write_encoder(self, folder: Path, encoder: LoadedEncoder, reference: ReferenceOutputs) -> EncoderSpec:
        assert self.config.encoder is not None  # checked in `open`
        kept: tuple[str, ...] = ()
        described = EncoderSpec(
            family=encoder.family,
            backend=self.encoder_backend,
            quantization=self.encoder_quantization,
            d_model=encoder.d_model,
            max_tokens=self.config.encoder.max_tokens,
            prefix_tokens=encoder.prefix_tokens,
            suffix_tokens=encoder.suffix_tokens,
        )
        path = folder / described.path
        if self.encoder_backend == "onnx":
            kept = write_encoder_onnx(path, encoder, self.encoder_quantization, reference.ids)
        else:
            write_encoder(encoder, path, self.encoder_quantization)
        if kept:
            self.log(f"matrices of the encoder in float32, for the states' sake: {', '.join(kept)}")
        return msgspec.structs.replace(described, float32_matrices=kept)

    def _write_llm(
        self, folder: Path, body: LlmBody, reference: ReferenceOutputs, weights: dict[str, Array]
    ) -> LlmSpec:
        path, quantization = folder / f"llm.{self.llm_backend}", self.llm_quantization
        if quantization == "int8" or (self.llm_backend == "onnx" and quantization == "f32"):
            written = write_llm_onnx(path, body, quantization, reference.inputs_GD)
        else:
            written = write_llm(path, body, quantization, weights)
        log_tensor_types(written, self.log)
        return LlmSpec(
            backend=self.llm_backend,
            architecture=written.architecture,
            n_embd=written.n_embd,
            n_layer=written.n_layer,
            quantization=quantization,
            float32_matrices=written.float32_matrices,
            attention=body.attention,
            pooling="mean",
        )

    def _write_rest(
        self, folder: Path, languages: tuple[str, ...], encoder: EncoderSpec, llm: LlmSpec, llm_onnx: LlmSpec | None
    ) -> Manifest:
        """Bridge, heads, licenses, and a manifest that has not been compared yet."""
        weight, bias = read_bridge(self.checkpoint)
        save_file({"weight": weight, "bias": bias}, folder / BRIDGE_NAME)
        tasks = {name: self._write_task(folder, name) for name in self.config.tasks}
        if not self.config.sources:
            self.log(f"no license is known: {self.checkpoint / CONFIG_NAME} lists no source")
        sources = write_licenses(folder, self.config.sources, self.checkpoint)
        return Manifest(
            format_version=FORMAT_VERSION,
            name=self.config.name,
            created_with=f"mtllm-edge {__version__}",
            encoder=encoder,
            bridge=self.config.bridge,
            llm=llm,
            tasks=tasks,
            languages=languages,
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

    def _compared(self, folder: Path, manifest: Manifest, reference: ReferenceOutputs) -> Manifest:
        """The manifest with the comparison in it, as it lies in the folder in the end."""
        (folder / MANIFEST_NAME).write_bytes(manifest.to_json())  # the runtime opens the unfinished bundle by it
        parity = compare(folder, reference, llm_backend=self.llm_backend)
        if self.both:
            parity += tuple(
                msgspec.structs.replace(row, component=f"{row.component}, onnx")
                for row in compare(folder, reference, llm_backend="onnx")
                if row.component != "encoder"
            )
        quantized = (self.encoder_quantization, self.llm_quantization) != ("float32", "f32")
        check_parity(parity, quantized=quantized)
        manifest = msgspec.structs.replace(manifest, parity=parity)
        (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
        return manifest
