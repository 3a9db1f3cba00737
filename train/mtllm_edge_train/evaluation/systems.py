"""The compared systems: the MT-LLM and three baselines.

All of them are trained on the same English labels, and differ in how they read other languages. The translate-test
baseline translates into English first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input, Kind, parts_of, replace_parts
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.evaluation.model_under_test import ModelUnderTest, check_languages, open_checkpoint
from mtllm_edge_train.evaluation.prediction_cache import (
    CachedPredictor,
    PredictionCache,
    Predictor,
    digest,
    folder_digest,
)

TITLES = {
    "mt_llm": "MT-LLM",
    "encoder_alone": "encoder alone",
    "translate_test": "translate-test",
    "llm_alone": "LLM alone",
}
"""System id -> display name, in the order of tables and charts."""

_POOLING_OF_PARTS = "mean-pooled, comparing two texts at a time"
_POOLING: dict[Kind, str] = {
    "sequence": "mean-pooled",
    "pair": _POOLING_OF_PARTS,
    "multiple_choice": _POOLING_OF_PARTS,
}


@dataclass(frozen=True)
class System:
    """A compared system."""

    id: str
    """A key of `TITLES`."""
    description: str
    classifier: CachedPredictor
    translator: CachedPredictor | None = None
    """Translates the classifier's inputs; the texts of a pair and the choices are translated separately."""

    def predict(self, texts: Sequence[Input], language: str) -> list[str]:
        """Predict the labels of inputs in one language."""
        if self.translator is not None:
            translations = iter(self.translator([part for item in texts for part in parts_of(item)], language))
            texts = [replace_parts(item, [next(translations) for _ in parts_of(item)]) for item in texts]
        return self.classifier(texts, language)


@dataclass(frozen=True)
class SystemFactory:
    """Builds the systems of a comparison, with the checks that need no loaded model."""

    model: ModelUnderTest
    languages: Sequence[str]
    """Codes of all evaluated languages."""
    cache: PredictionCache
    device: str
    """Device of the models that run in torch."""
    threads: int | None
    """CPU threads of the engines, as for a bundle."""

    def build(
        self, *, train: LabeledTexts | None, train_language: str, teacher: Path | None, translator: Path | None
    ) -> tuple[list[System], dict[str, str]]:
        """Build the systems that can run, and return for the id of each other system what it requires.

        Raises:
            UsageError: The teacher has an encoder, lacks the task, or has other labels.
            ModelError: The teacher or the translator is damaged or something else.
        """
        systems = [self._model_under_test()]
        if not self.model.has_encoder:
            return systems, {}
        if train is not None:
            systems.append(self._encoder_only(train, train_language))
        if teacher is not None:
            llm, name = self._teacher(teacher)
            if translator is not None:
                translate, description = self._translator(translator)
                systems.append(System("translate_test", f"translator {description}, then LLM {name}", llm, translate))
            systems.append(System("llm_alone", f"LLM {name}, without encoder", llm))
        requirements = {
            "encoder_alone": "needs --train",
            "translate_test": "needs --translator" + (" and --teacher" if teacher is None else ""),
            "llm_alone": "needs --teacher",
        }
        ids = {system.id for system in systems}
        return systems, {system: needs for system, needs in requirements.items() if system not in ids}

    def _model_under_test(self) -> System:
        model = self.model
        system = "mt_llm" if model.has_encoder else "llm_alone"
        predictor = self._cached(
            [system, model.digest, model.task],
            lambda: model.load(self.languages, device=self.device, threads=self.threads),
        )
        return System(system, model.description, predictor)

    def _encoder_only(self, train: LabeledTexts, language: str) -> System:
        """The encoder under a logistic regression on training rows in one language."""

        def load() -> Predictor:
            from mtllm_edge_train.evaluation.encoder_only import fit_encoder_only, load_encoder_only

            encoder = load_encoder_only(self.model.source, device=self.device, threads=self.threads)
            check_languages([language, *self.languages], encoder.languages)
            return fit_encoder_only(encoder, train, language=language)

        description = (
            f"its encoder, {_POOLING[train.kind]}, cross-validated logistic regression on {len(train.texts)} texts "
            f"in {language}"
        )
        key = ["encoder_alone", self.model.digest, description, *train.inputs, *train.labels]
        return System("encoder_alone", description, self._cached(key, load))

    def _translator(self, folder: Path) -> tuple[CachedPredictor, str]:
        """Greedy translation, and its description."""
        from mtllm_edge.translator import TranslatorManifest

        manifest = TranslatorManifest.load(folder)

        def load() -> Predictor:
            from mtllm_edge.translator import Translator

            translator = Translator.load(folder, threads=self.threads)

            def translate(texts: Sequence[Input], language: str) -> list[str]:
                translations = translator.translate([text for item in texts for text in parts_of(item)])
                return [text if text.strip() else "." for text in translations]  # the LLM rejects empty texts

            return translate

        predictor = self._cached(["translator", folder_digest(folder)], load)
        return predictor, f"{manifest.name} ({manifest.quantization}, greedy)"

    def _teacher(self, folder: Path) -> tuple[CachedPredictor, str]:
        """The fine-tuned English LLM, which reads texts of any language without an encoder, and its name."""
        teacher = open_checkpoint(folder, self.model.task)
        if teacher.has_encoder:
            raise UsageError(f"{folder} has an encoder; --teacher is the LLM that `mtllm-edge train finetune` made")
        if teacher.kind != self.model.kind:
            raise UsageError(
                f"task {teacher.task!r} is of the kind {teacher.kind!r} in {folder}, but {self.model.kind!r} in "
                f"{self.model.name}; give the teacher of this model"
            )
        if set(teacher.labels) != set(self.model.labels):
            raise UsageError(
                f"task {teacher.task!r} has the labels {', '.join(teacher.labels)} in {folder}, but "
                f"{', '.join(self.model.labels)} in {self.model.name}; give the teacher of this model"
            )
        predictor = self._cached(
            ["llm", teacher.digest, teacher.task],
            lambda: teacher.load(self.languages, device=self.device, threads=self.threads),
        )
        return predictor, teacher.name

    def _cached(self, key: Sequence[Input], load: Callable[[], Predictor]) -> CachedPredictor:
        return CachedPredictor(digest(*key), load, self.cache)
