"""Files for the commands of the pages: tiny bundles, checkpoints and tables, with the names that the pages use."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.numpy

from mtllm_edge import Classifier
from tests.fixtures.tiny_bundle import N_EMBD, lora_weights, make_tiny_bundle, write_lora

ROOT = Path(__file__).parents[2]
TOPICS = ("entertainment", "geography", "health", "politics", "science/technology", "sports", "travel")
"""The reference bundle's, so that the demo's sheet fits."""
ENCODER, LLM = "facebook/nllb-200-distilled-600M", "HuggingFaceTB/SmolLM2-135M-Instruct"
PUBLISHED = "fdschmidt93/NLLB-LLM2Vec-Meta-Llama-31-8B-Instruct-mntp-unsup-simcse"

_MOODS = ("negative", "neutral", "positive")
_THINGS = ("pump", "lift", "door", "printer", "heating", "network", "gate", "screen")
_MAILS = [
    {"text": text.format(thing), "body": f"Hello, {text.format(thing)}", "label": label}
    for thing in _THINGS
    for text, label in (("The {} is on fire!", "urgent"), ("The {} may be painted one day.", "later"))
]
_WORDS = {"deu_Latn": "abba dada", "eng_Latn": "head dab", "tam_Taml": "bad egg"}
_NEWS = [
    {
        "lang": lang,
        "text": f"{words} {'abcdefgh'[i % 8]} {'bcdefgha'[i // 3]}",
        "category": TOPICS[i % 3],
        "split": split,
    }
    for lang, words in _WORDS.items()
    for split, count in (("train", 12), ("test", 6))
    for i in range(count)
]


def lay_out_runtime(folder: Path) -> None:
    """Write files for the runtime: a bundle, mails, notes and the sentences of the demo."""
    make_tiny_bundle(folder / "build" / "reference", tasks={"topic": TOPICS, "sentiment": _MOODS})
    _write_csv(folder / "mails.csv", [row | {"lang": "en"} for row in _MAILS])
    _write_csv(folder / "reports.csv", [{"text": row["text"] * 10} for row in _MAILS])
    _write_csv(folder / "new_mails.csv", [{"text": row["text"], "sender": "a@example.org"} for row in _MAILS])
    _write_jsonl(folder / "mails.jsonl", _MAILS)
    (folder / "notes.txt").write_text("".join(f"{row['text']}\n" for row in _MAILS), encoding="utf-8")
    _write_csv(folder / "checked.csv", _checked(folder / "build" / "reference"))
    (folder / "long.txt").write_text("The pump is on fire! " * 40 + "\n", encoding="utf-8")
    (folder / "broken.jsonl").write_text('{"text": "The lift is stuck."}\n{"text": 5}\n', encoding="utf-8")
    (folder / "news").mkdir()
    _write_jsonl(folder / "news" / "monday.jsonl", _MAILS[:4])
    (folder / "old").mkdir()
    _write_csv(folder / "old" / "2024.csv", _MAILS[4:8])
    plain = folder / "old" / "2024.csv"
    plain.with_suffix(".csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (folder / "benchmarks").mkdir()
    with (ROOT / "benchmarks" / "demo_topics.csv").open(encoding="utf-8", newline="") as file:
        _write_csv(folder / "benchmarks" / "demo_topics.csv", list(csv.DictReader(file))[::60])
    shutil.copy(ROOT / "benchmarks" / "throughput.py", folder / "benchmarks")
    rng = np.random.default_rng(1)
    safetensors.numpy.save_file({"weight": rng.standard_normal((2, N_EMBD), np.float32)}, folder / "head.safetensors")
    write_lora(folder / "adapter.gguf", lora_weights(rng))


def lay_out_training(folder: Path) -> None:
    """Write files for training and export: models with names as on the hub, texts, labels, a checkpoint."""
    # Imported here, so that the pages of the runtime are tested without torch.
    import torch

    from tests.fixtures.tiny_checkpoint import save_checkpoint, save_encoder
    from tests.fixtures.tiny_llms import save_llm_and_tokenizer
    from tests.fixtures.tiny_published import save_published
    from tests.train.multilingual import test_train_translator

    torch.set_num_threads(1)  # the models are too tiny for several threads
    save_encoder(folder / ENCODER, "m2m_100")
    save_llm_and_tokenizer(folder / LLM)
    save_checkpoint(folder / "trained")
    save_published(folder / PUBLISHED)
    test_train_translator.run(folder / "translator", test_train_translator.tiny_bert(folder / "bert"), steps=1)
    english = [row for row in _NEWS if row["lang"] == "eng_Latn" and row["split"] == "train"]
    (folder / "english").mkdir()
    (folder / "english" / "part1.txt").write_text("".join(f"{row['text']}\n" for row in english), encoding="utf-8")
    (folder / "texts.txt").write_text("".join(f"{row['lang']}\t{row['text']}\n" for row in _NEWS), encoding="utf-8")
    _write_csv(folder / "topics.csv", [{"text": row["text"], "label": row["category"]} for row in english])
    german = [row for row in _NEWS if row["lang"] == "deu_Latn"]
    _write_csv(folder / "german.csv", [{"text": row["text"], "label": row["category"]} for row in german])
    _write_jsonl(folder / "reviews.jsonl", [{"text": row["text"], "label": row["label"]} for row in _MAILS])
    pairs = [{"premise": row["text"], "hypothesis": row["body"], "label": row["label"]} for row in _MAILS]
    _write_csv(folder / "nli.csv", pairs)
    choices = [
        {"text": row["text"], "choice1": "yes", "choice2": "no", "label": str(i % 2)} for i, row in enumerate(_MAILS)
    ]
    _write_csv(folder / "copa.csv", choices)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_NEWS), folder / "sib200.parquet")
    (folder / "counts.tsv").write_text("lang\tsentences\ndeu_Latn\t100000\ntam_Taml\t5000\n", encoding="utf-8")


def lay_out_stack(folder: Path) -> None:
    """Write trained models: a stack, its teacher and a translator."""
    from mtllm_edge_export.translator import export_translator
    from mtllm_edge_train.checkpoints.config import TaskConfig
    from tests.train.cli.test_eval import save_teacher
    from tests.train.multilingual import test_train_translator

    tasks = {"topic": TaskConfig(kind="sequence", labels=TOPICS)}
    make_tiny_bundle(folder / "my-stack", tasks={"topic": TOPICS})
    save_teacher(folder / "teacher", tasks)
    test_train_translator.run(folder / "translator", test_train_translator.tiny_bert(folder / "bert"), steps=1)
    export_translator(folder / "translator", folder / "mt", quantization="float32", force=False)
    german = [row for row in _NEWS if row["lang"] == "deu_Latn"]
    _write_csv(folder / "german.csv", [{"text": row["text"], "label": row["category"]} for row in german])


def _checked(bundle: Path) -> list[dict[str, str]]:
    """Return texts labeled by the random bundle, one in sixteen wrong, so that the target accuracy is reached."""
    texts = [row[column] for column in ("text", "body") for row in _MAILS]
    with Classifier.load(bundle, task="topic", threads=1) as classifier:
        labels = [prediction.label for prediction in classifier.classify(texts)]
    labels[::16] = [TOPICS[TOPICS.index(label) - 1] for label in labels[::16]]
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def _write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
