"""The MT-LLM and its three baselines: a model that labels texts, in one of them after a translator.

All of them learned the task from the same English labels, and differ in how they come to understand another language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input, Kind, parts_of, replace_parts
from mtllm_edge_train.checkpoints.config import StackConfig
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.evaluation.model_under_test import Subject, check_languages, checkpoint_digest, task_of
from mtllm_edge_train.evaluation.prediction_cache import Answers, Ask, Model, digest, folder_digest

TITLES = {
    "mt_llm": "MT-LLM",
    "encoder_alone": "encoder alone",
    "translate_test": "translate-test",
    "llm_alone": "LLM alone",
}
"""Id of each system -> its name for people, in the order of tables and charts."""

_COMPARED = "mean-pooled, comparing two texts at a time"
_READINGS: dict[Kind, str] = {"sequence": "mean-pooled", "pair": _COMPARED, "multiple_choice": _COMPARED}


@dataclass(frozen=True)
class System:
    """What is compared."""

    id: str
    """One of `TITLES`."""
    description: str
    """What it consists of here."""
    reader: Model
    """Writes the labels."""
    translator: Model | None = None
    """Writes what the reader reads: the texts of a pair and the choices are translated each by itself."""

    def answer(self, texts: Sequence[Input], language: str) -> list[str]:
        """Its labels for texts in one language, or for what else the task reads."""
        if self.translator is not None:
            translated = iter(self.translator([part for item in texts for part in parts_of(item)], language))
            texts = [replace_parts(item, [next(translated) for _ in parts_of(item)]) for item in texts]
        return self.reader(texts, language)


@dataclass(frozen=True)
class Systems:
    """Makes the systems of a comparison, and checks what can be checked without loading a model."""

    subject: Subject
    languages: Sequence[str]
    """All that will be asked for."""
    answers: Answers
    """What is known already."""
    device: str
    """Of what runs in torch."""
    threads: int | None
    """Of the engines, as for a bundle."""

    def choose(
        self, *, train: LabeledTexts | None, train_language: str, teacher: Path | None, translator: Path | None
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
            systems.append(System("translate_test", f"translator {how}, then LLM {name}", reader, translate))
        else:
            left_out["translate_test"] = "needs --translator"
        systems.append(System("llm_alone", f"LLM {name}, without encoder", reader))
        return systems, left_out

    def _mt_llm(self) -> System:
        """The stack itself."""
        subject = self.subject
        model = self._model(
            ["mt_llm", subject.key, subject.task],
            lambda: subject.load(self.languages, device=self.device, threads=self.threads),
        )
        return System("mt_llm", subject.description, model)

    def _encoder_alone(self, train: LabeledTexts, language: str) -> System:
        """The stack's encoder under a logistic regression on training rows in one language."""

        def load() -> Ask:
            from mtllm_edge_train.evaluation.encoder_only import EncoderAlone

            reader = EncoderAlone(self.subject.model, device=self.device, threads=self.threads)
            check_languages([language, *self.languages], reader.languages)
            return reader.fit(train, language=language)

        what = (
            f"its encoder, {_READINGS[train.kind]}, cross-validated logistic regression on {len(train.texts)} texts "
            f"in {language}"
        )
        key = ["encoder_alone", self.subject.key, what, *train.inputs, *train.labels]
        return System("encoder_alone", what, self._model(key, load))

    def _translator(self, folder: Path) -> tuple[Model, str]:
        """Greedy translation."""
        from mtllm_edge.translator import TranslatorManifest

        manifest = TranslatorManifest.load(folder)

        def load() -> Ask:
            from mtllm_edge.translator import Translator

            engine = Translator.load(folder, threads=self.threads)

            def ask(texts: Sequence[Input], language: str) -> list[str]:
                found = engine.translate([text for item in texts for text in parts_of(item)])
                return [text if text.strip() else "." for text in found]  # an empty one is nothing that an LLM reads

            return ask

        model = self._model(["translator", folder_digest(folder)], load)
        return model, f"{manifest.name} ({manifest.quantization}, greedy)"

    def _teacher(self, folder: Path) -> tuple[Model, str]:
        """The fine-tuned English LLM, on whatever text it gets."""
        config = StackConfig.load(folder)
        if config.encoder is not None:
            raise UsageError(f"{folder} has an encoder; --teacher is the LLM that `mtllm-edge train finetune` made")
        task, expected = self.subject.task, self.subject.labels
        asked = task_of(config.tasks, task, folder)
        if asked.kind != self.subject.kind:
            raise UsageError(
                f"task {task!r} is of the kind {asked.kind!r} in {folder}, but {self.subject.kind!r} in "
                f"{self.subject.name}; give the teacher of this model"
            )
        labels = asked.labels
        if set(labels) != set(expected):
            raise UsageError(
                f"task {task!r} has the labels {', '.join(labels)} in {folder}, but {', '.join(expected)} in "
                f"{self.subject.name}; give the teacher of this model"
            )

        def load() -> Ask:
            from mtllm_edge_train.evaluation.scoring import Evaluator

            evaluator = Evaluator(folder, device=self.device)
            return lambda texts, language: evaluator.predict(task, texts)

        return self._model(["llm", checkpoint_digest(folder, config), task], load), config.name

    def _model(self, key: Sequence[Input], load: Callable[[], Ask]) -> Model:
        return Model(digest(*key), load, self.answers)
