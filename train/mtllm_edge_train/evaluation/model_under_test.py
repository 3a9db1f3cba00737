"""The evaluated model: a bundle as users run it, or a checkpoint in torch. It is loaded on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.bundle.manifest import MANIFEST_NAME
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.inputs import Input, Kind
from mtllm_edge_train.checkpoints.config import CONFIG_NAME, StackConfig, find_task
from mtllm_edge_train.evaluation.prediction_cache import Predictor, checkpoint_digest, digest


@dataclass(frozen=True)
class ModelUnderTest:
    """A model and the task that it is evaluated on."""

    source: Bundle | Path
    """A bundle, or the folder of a checkpoint."""
    name: str
    description: str
    digest: str
    """Digest of all weights."""
    task: str
    kind: Kind
    """Kind of the task's inputs."""
    labels: tuple[str, ...]
    """Labels of the task; empty for multiple choice."""
    has_encoder: bool = True
    """False for a fine-tuned LLM, the teacher of a stack."""

    def load(self, languages: Sequence[str], *, device: str, threads: int | None) -> Predictor:
        """Load a checkpoint on a device, or a bundle with a number of CPU threads, for predictions in `languages`.

        Raises:
            UsageError: The encoder requires a language code and lacks one of them.
        """
        if isinstance(self.source, Bundle):
            return self._load_bundle(self.source, languages, threads)
        return self._load_checkpoint(self.source, languages, device)

    def _load_bundle(self, bundle: Bundle, languages: Sequence[str], threads: int | None) -> Predictor:
        from mtllm_edge.classifier import Classifier

        codes = bundle.manifest.languages
        check_languages(languages, codes)
        classifier = Classifier.load(bundle, task=self.task, threads=threads)

        def predict(texts: Sequence[Input], language: str) -> list[str]:
            predictions = classifier.classify(texts, language=language if codes else None, threshold=0)
            return [prediction.label for prediction in predictions]

        return predict

    def _load_checkpoint(self, folder: Path, languages: Sequence[str], device: str) -> Predictor:
        from mtllm_edge_train.evaluation.checkpoint_classifier import CheckpointClassifier

        classifier = CheckpointClassifier(folder, device=device)
        codes = classifier.languages
        check_languages(languages, codes)
        return lambda texts, language: classifier.predict(self.task, texts, language=language if codes else None)


def open_model(folder: Path, task: str) -> ModelUnderTest:
    """Read the description of a bundle or checkpoint.

    Raises:
        UsageError: The model has no such task.
        ModelError: The folder is neither a bundle nor a checkpoint, or is damaged.
    """
    if (folder / MANIFEST_NAME).is_file():
        bundle = Bundle.open(folder)
        manifest = bundle.manifest
        description = f"{manifest.name}, encoder {manifest.encoder.quantization}, LLM {manifest.llm.quantization}"
        spec = find_task(manifest.tasks, task, folder)
        key = digest(manifest.to_json().decode())
        return ModelUnderTest(bundle, manifest.name, description, key, task, spec.kind, spec.labels)
    if not (folder / CONFIG_NAME).is_file():
        raise ModelError(f"{folder} holds neither {MANIFEST_NAME} nor {CONFIG_NAME}; name a bundle or a checkpoint")
    return open_checkpoint(folder, task)


def open_checkpoint(folder: Path, task: str) -> ModelUnderTest:
    """Read the description of a checkpoint; errors as for `open_model`."""
    config = StackConfig.load(folder)
    spec = find_task(config.tasks, task, folder)
    description, key = f"{config.name} in torch", checkpoint_digest(folder, config)
    has_encoder = config.encoder is not None
    return ModelUnderTest(folder, config.name, description, key, task, spec.kind, spec.labels, has_encoder)


def check_languages(languages: Sequence[str], codes: Sequence[str]) -> None:
    """Check, before hours of work, that the encoder has a token for every language.

    Raises:
        UsageError: One is missing; `codes` is empty for an encoder without language codes.
    """
    unsupported = [code for code in languages if codes and code not in codes]
    if unsupported:
        raise UsageError(
            f"the encoder has no token for the language {unsupported[0]}; leave its rows out, or use the encoder's "
            f"codes, such as {codes[0]}"
        )
