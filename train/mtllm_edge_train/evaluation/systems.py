"""The MT-LLM and its three baselines, each a chain of models from texts to labels.

All of them learned the task from the same English labels, and differ in how they come to understand another language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.bundle import Bundle
from mtllm_edge.errors import DataError, ModelError, UsageError
from mtllm_edge.manifest import MANIFEST_NAME
from mtllm_edge_train.config import CONFIG_NAME, StackConfig, resolve_source
from mtllm_edge_train.data import LabelledTexts
from mtllm_edge_train.evaluation.answers import Answers, Ask, Model, digest, folder_digest

TITLES = {
    "mt_llm": "MT-LLM",
    "encoder_alone": "encoder alone",
    "translate_test": "translate-test",
    "llm_alone": "LLM alone",
}
"""Id of each system -> its name for people, in the order of tables and charts."""


@dataclass(frozen=True)
class System:
    """What is compared."""

    id: str
    """One of `TITLES`."""
    description: str
    """What it consists of here."""
    chain: tuple[Model, ...]
    """The first reads the texts, each other one what the one before it wrote; the last one writes labels."""

    def answer(self, texts: list[str], language: str) -> list[str]:
        """Its labels for texts in one language."""
        for model in self.chain:
            texts = model(texts, language)
        return texts


class Systems:
    """Makes the systems; checks what can be checked without loading a model."""

    def __init__(
        self, folder: Path, task: str, *, languages: Sequence[str], answers: Answers, device: str, threads: int | None
    ) -> None:
        """Look at the MT-LLM.

        Args:
            folder: A bundle or a checkpoint.
            task: One of its tasks.
            languages: All that will be asked for.
            answers: What is known already.
            device: Of what runs in torch.
            threads: Of the engines, as for a bundle.

        Raises:
            UsageError: No such task, or an LLM without encoder.
            ModelError: Neither a bundle nor a checkpoint, or a damaged one.
        """
        self._folder, self._task, self._languages = folder, task, languages
        self._answers, self._device, self._threads = answers, device, threads
        if (folder / MANIFEST_NAME).is_file():
            self._bundle: Bundle | None = Bundle.open(folder)
            manifest = self._bundle.manifest
            self.name, kinds = manifest.name, {name: part.labels for name, part in manifest.tasks.items()}
            self._what = f"{manifest.name}, encoder {manifest.encoder.quantization}, LLM {manifest.llm.quantization}"
            self._key = digest(manifest.to_json().decode())
        elif (folder / CONFIG_NAME).is_file():
            self._bundle = None
            config = StackConfig.load(folder)
            if config.encoder is None:
                raise UsageError(f"{folder} is an LLM without an encoder; give it as --teacher, and a stack as MODEL")
            self.name, kinds = config.name, {name: part.labels for name, part in config.tasks.items()}
            self._what = f"{config.name} in torch"
            self._key = checkpoint_digest(folder, config)
        else:
            raise ModelError(f"{folder} holds neither {MANIFEST_NAME} nor {CONFIG_NAME}; name a bundle or a checkpoint")
        self.labels = _labels(kinds, task, folder)

    def choose(
        self, *, train: LabelledTexts | None, train_language: str, teacher: Path | None, translator: Path | None
    ) -> tuple[list[System], dict[str, str]]:
        """The systems that can run, and for each other one's id what it needs.

        Args:
            train: Training rows.
            train_language: Their language.
            teacher: The fine-tuned English LLM.
            translator: A translator made by `export-translator`.

        Raises:
            UsageError: The teacher has an encoder, lacks the task, or has other labels.
            ModelError: The teacher or the translator is none, or damaged.
        """
        systems, left_out = [self._mt_llm()], {}
        if train is not None:
            systems.append(self._encoder_alone(train, train_language))
        else:
            left_out["encoder_alone"] = "needs --train"
        if teacher is None:
            return systems, left_out | {
                "translate_test": "needs --translator and --teacher",
                "llm_alone": "needs --teacher",
            }
        reader, name = self._teacher(teacher)
        if translator is not None:
            translate, how = self._translator(translator)
            systems.append(System("translate_test", f"translator {how}, then LLM {name}", (translate, reader)))
        else:
            left_out["translate_test"] = "needs --translator"
        systems.append(System("llm_alone", f"LLM {name}, without encoder", (reader,)))
        return systems, left_out

    def _mt_llm(self) -> System:
        """The stack itself."""
        load = self._load_bundle if self._bundle else self._load_checkpoint
        return System("mt_llm", self._what, (self._model(["mt_llm", self._key, self._task], load),))

    def _encoder_alone(self, train: LabelledTexts, language: str) -> System:
        """The stack's encoder, mean-pooled, under a logistic regression on training rows in one language."""

        def load() -> Ask:
            from mtllm_edge_train.evaluation.encoder_alone import EncoderAlone

            reader = EncoderAlone(self._bundle or self._folder, device=self._device, threads=self._threads)
            self._check_languages([language, *self._languages], reader.languages)
            return reader.fit(train, language=language)

        what = (
            f"its encoder, mean-pooled, cross-validated logistic regression on {len(train.texts)} texts in {language}"
        )
        key = ["encoder_alone", self._key, what, *train.texts, *train.labels]
        return System("encoder_alone", what, (self._model(key, load),))

    def _translator(self, folder: Path) -> tuple[Model, str]:
        """Greedy translation."""
        from mtllm_edge.translator import TranslatorManifest

        manifest = TranslatorManifest.load(folder)

        def load() -> Ask:
            from mtllm_edge.translator import Translator

            engine = Translator.load(folder, threads=self._threads)
            # A translation may come out empty, which no LLM reads.
            return lambda texts, language: [text if text.strip() else "." for text in engine.translate(texts)]

        model = self._model(["translator", folder_digest(folder)], load)
        return model, f"{manifest.name} ({manifest.quantization}, greedy)"

    def _teacher(self, folder: Path) -> tuple[Model, str]:
        """The fine-tuned English LLM, on whatever text it gets."""
        config = StackConfig.load(folder)
        if config.encoder is not None:
            raise UsageError(f"{folder} has an encoder; --teacher is the LLM that `mtllm-edge train finetune` made")
        labels = _labels({name: part.labels for name, part in config.tasks.items()}, self._task, folder)
        if set(labels) != set(self.labels):
            raise UsageError(
                f"task {self._task!r} has the labels {', '.join(labels)} in {folder}, but {', '.join(self.labels)} "
                f"in {self._folder}; give the teacher of this model"
            )

        def load() -> Ask:
            from mtllm_edge_train.evaluate import Evaluator

            evaluator = Evaluator(folder, device=self._device)
            return lambda texts, language: evaluator.predict(self._task, texts)

        return self._model(["llm", checkpoint_digest(folder, config), self._task], load), config.name

    def _load_bundle(self) -> Ask:
        from mtllm_edge.classifier import Classifier

        assert self._bundle is not None
        known = self._bundle.manifest.languages
        self._check_languages(self._languages, known)
        classifier = Classifier.load(self._bundle, task=self._task, threads=self._threads)

        def ask(texts: list[str], language: str) -> list[str]:
            found = classifier.classify(texts, language=language if known else None)
            return [prediction.label for prediction in found]

        return ask

    def _load_checkpoint(self) -> Ask:
        from mtllm_edge_train.evaluate import Evaluator

        evaluator = Evaluator(self._folder, device=self._device)
        known = evaluator.languages
        self._check_languages(self._languages, known)
        return lambda texts, language: evaluator.predict(self._task, texts, language=language if known else None)

    def _check_languages(self, wanted: Sequence[str], known: Sequence[str]) -> None:
        strange = [code for code in wanted if known and code not in known]
        if strange:
            raise DataError(
                f"the encoder of {self._folder} has no token for the language {strange[0]}; leave its rows out, or "
                f"write its codes, such as {known[0]}"
            )

    def _model(self, key: Sequence[str], load: Callable[[], Ask]) -> Model:
        return Model(digest(*key), load, self._answers)


def checkpoint_digest(folder: Path, config: StackConfig) -> str:
    """A name for a checkpoint's content and for the models that it stands on; a model on the hub is its id."""
    sources = [config.llm.source] + ([config.encoder.source] if config.encoder else [])
    paths = [Path(resolve_source(source, folder)) for source in sources]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    stamps = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return digest(folder_digest(folder), *sources, *stamps)


def _labels(tasks: dict[str, tuple[str, ...]], task: str, folder: Path) -> tuple[str, ...]:
    if task not in tasks:
        raise UsageError(f"{folder} has no task {task!r}; its tasks: {', '.join(tasks) or 'none'}")
    return tasks[task]
