"""What is evaluated: a bundle, as users run it, or a checkpoint in torch. Nothing is loaded before it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.bundle.manifest import MANIFEST_NAME, TaskSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.inputs import Input, Kind
from mtllm_edge_train.checkpoints.config import CONFIG_NAME, StackConfig, TaskConfig, resolve_source
from mtllm_edge_train.evaluation.prediction_cache import Ask, digest, folder_digest


@dataclass(frozen=True)
class Subject:
    """An MT-LLM with the task that it is asked."""

    model: Bundle | Path
    """A bundle, or the folder of a checkpoint."""
    name: str
    description: str
    key: str
    """Digest of all its weights."""
    task: str
    kind: Kind
    """What the task reads."""
    labels: tuple[str, ...]
    """Those of the task; none for multiple choice."""

    def load(self, languages: Sequence[str], *, device: str, threads: int | None) -> Ask:
        """Load it.

        Args:
            languages: All that it will be asked for.
            device: Of a checkpoint.
            threads: Of a bundle; None takes what suits.

        Raises:
            UsageError: The encoder must be told the language and does not know one.
        """
        if isinstance(self.model, Bundle):
            return self._load_bundle(self.model, languages, threads)
        return self._load_checkpoint(self.model, languages, device)

    def _load_bundle(self, bundle: Bundle, languages: Sequence[str], threads: int | None) -> Ask:
        from mtllm_edge.classifier import Classifier

        known = bundle.manifest.languages
        check_languages(languages, known)
        classifier = Classifier.load(bundle, task=self.task, threads=threads)

        def ask(texts: Sequence[Input], language: str) -> list[str]:
            found = classifier.classify(texts, language=language if known else None, threshold=0)
            return [prediction.label for prediction in found]

        return ask

    def _load_checkpoint(self, folder: Path, languages: Sequence[str], device: str) -> Ask:
        from mtllm_edge_train.evaluation.scoring import Evaluator

        evaluator = Evaluator(folder, device=device)
        known = evaluator.languages
        check_languages(languages, known)
        return lambda texts, language: evaluator.predict(self.task, texts, language=language if known else None)


def open_subject(folder: Path, task: str) -> Subject:
    """Look at an MT-LLM.

    Raises:
        UsageError: No such task, or an LLM without encoder.
        ModelError: Neither a bundle nor a checkpoint, or a damaged one.
    """
    if (folder / MANIFEST_NAME).is_file():
        bundle = Bundle.open(folder)
        manifest = bundle.manifest
        what = f"{manifest.name}, encoder {manifest.encoder.quantization}, LLM {manifest.llm.quantization}"
        asked = task_of(manifest.tasks, task, folder)
        return Subject(bundle, manifest.name, what, digest(manifest.to_json().decode()), task, asked.kind, asked.labels)
    if not (folder / CONFIG_NAME).is_file():
        raise ModelError(f"{folder} holds neither {MANIFEST_NAME} nor {CONFIG_NAME}; name a bundle or a checkpoint")
    config = StackConfig.load(folder)
    if config.encoder is None:
        raise UsageError(f"{folder} is an LLM without an encoder; give it as --teacher, and a stack as MODEL")
    asked = task_of(config.tasks, task, folder)
    what = f"{config.name} in torch"
    return Subject(folder, config.name, what, checkpoint_digest(folder, config), task, asked.kind, asked.labels)


def task_of(tasks: Mapping[str, TaskSpec] | Mapping[str, TaskConfig], task: str, folder: Path) -> TaskSpec | TaskConfig:
    """One of a model's tasks.

    Raises:
        UsageError: It has no such task.
    """
    if task not in tasks:
        raise UsageError(f"{folder} has no task {task!r}; its tasks: {', '.join(tasks) or 'none'}")
    return tasks[task]


def check_languages(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse, before hours of work, a language that the encoder must be told and does not know.

    Raises:
        UsageError: There is one; `known` is empty where the encoder takes none.
    """
    strange = [code for code in wanted if known and code not in known]
    if strange:
        raise UsageError(
            f"the encoder has no token for the language {strange[0]}; leave its rows out, or write its codes, such as "
            f"{known[0]}"
        )


def checkpoint_digest(folder: Path, config: StackConfig) -> str:
    """A name for a checkpoint's content and for the models that it stands on; a model on the hub is its id."""
    sources = [config.llm.source] + ([config.encoder.source] if config.encoder else [])
    paths = [Path(resolve_source(source, folder)) for source in sources]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    stamps = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return digest(folder_digest(folder), *sources, *stamps)
