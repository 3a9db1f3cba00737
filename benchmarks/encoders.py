"""The encoder alone, engine against engine: `python benchmarks/encoders.py`.

An encoder of NLLB-200-distilled-600M's shape with random weights reads texts with the token counts of the demo's
sentences: in CTranslate2 and ONNX Runtime, in float32 and int8, and in PyTorch. All have the same batches and threads
and take turns. The last line of stdout is the result as JSON, which is also written.
"""

from __future__ import annotations

import copy
import datetime
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch

from mtllm_edge import manifest, render
from mtllm_edge.batching import TOKENS_PER_BATCH, plan_batches
from mtllm_edge.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.encoders.onnx import OnnxEncoder
from mtllm_edge.machine import available_cores, default_threads, read_cpu
from mtllm_edge_bench import counted
from mtllm_edge_bench.demo_corpus import counted_corpus, demo_rows
from mtllm_edge_bench.random_nllb import random_model
from mtllm_edge_bench.report import Figure
from mtllm_edge_bench.shapes import LLMS, MAX_TOKENS, NLLB_600M
from mtllm_edge_export.encoder_ctranslate2 import EncoderQuantization, write_encoder
from mtllm_edge_export.encoder_onnx import write_encoder_onnx
from mtllm_edge_train.encoders import LoadedEncoder

HERE = Path(__file__).parent
QUANTIZATIONS: tuple[EncoderQuantization, ...] = ("float32", "int8")
_PATH = click.Path(path_type=Path)
_CALIBRATION = 32
"""Texts on which int8 in ONNX is compared with float32."""
Encode = Callable[[Sequence[Sequence[int]]], object]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is written."""

    date: str
    cpu: str
    cores: int
    threads: int
    texts: int
    tokens: int
    batch_tokens: int
    repeats: int
    texts_per_s: dict[str, Figure]
    over_ctranslate2_int8: dict[str, float]
    """Ratios of medians."""
    float32_matrices: int
    """Of int8 in ONNX, how many of the 72 stay in float32."""


@click.command()
@click.option("--texts", type=click.IntRange(1, 940), default=48, show_default=True, metavar="N", help="Of the demo's.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N")
@click.option("-o", "--output", "out", type=_PATH, default=HERE / "results", show_default="results", help="Folder.")
def main(*, texts: int, repeats: int, out: Path) -> None:
    """Measure, and write encoders-<date>.json."""
    threads = default_threads()
    torch.set_num_threads(threads)
    rows = read_ids(texts)
    batches = plan_batches([len(ids) for ids in rows], max_tokens=TOKENS_PER_BATCH)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        encoders, kept = load_all(Path(scratch), rows[:_CALIBRATION], threads)
        for repeat in range(repeats + 1):  # the first is to warm up
            for name, encode in encoders.items():
                began = time.perf_counter()
                for batch in batches:
                    encode([rows[place] for place in batch])
                rate = len(rows) / (time.perf_counter() - began)
                if repeat:
                    rates.setdefault(name, []).append(rate)
                    render.note(f"{name}: {rate:.2f} texts/s")
    figures = {name: Figure.of(found) for name, found in rates.items()}
    result = Result(
        date=datetime.date.today().isoformat(),
        cpu=read_cpu().model,
        cores=available_cores(),
        threads=threads,
        texts=len(rows),
        tokens=sum(map(len, rows)),
        batch_tokens=TOKENS_PER_BATCH,
        repeats=repeats,
        texts_per_s=figures,
        over_ctranslate2_int8={
            name: round(figure.median / figures["ctranslate2 int8"].median, 3) for name, figure in figures.items()
        },
        float32_matrices=kept,
    )
    out.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    (out / f"encoders-{result.date}.json").write_text(text + "\n", encoding="utf-8")
    click.echo(msgspec.json.encode(result).decode())


def read_ids(texts: int) -> list[list[int]]:
    """Random ids, with the token counts of the demo's sentences."""
    corpus = counted_corpus(
        demo_rows(HERE / "demo_topics.csv", texts),
        HERE.parent / "reference/parts/tokenizer.json",
        encoder_vocabulary=NLLB_600M["vocab_size"],
        llm_vocabulary=LLMS["135m"].config["vocab_size"],
    )
    return [[0, *(int(word[1:]) for word in text.split()), 2] for text in corpus.texts]


def load_all(folder: Path, calibration: list[list[int]], threads: int) -> tuple[dict[str, Encode], int]:
    """Every contender by its name, and how many matrices of ONNX in int8 stay in float32."""
    model = random_model(NLLB_600M)
    counted.write_tokenizer(folder / "tokenizer.json", NLLB_600M["vocab_size"])
    encoder = LoadedEncoder(
        family="m2m_100",
        module=model.get_encoder(),
        full_model=model,
        d_model=NLLB_600M["d_model"],
        max_positions=NLLB_600M["max_position_embeddings"],
        tokenizer_json=(folder / "tokenizer.json").read_text(encoding="utf-8"),
        prefix_tokens=counted.FRAME[0],
        suffix_tokens=counted.FRAME[1],
        languages=(),
    )
    encoders: dict[str, Encode] = {}
    kept: tuple[str, ...] = ()
    for quantization in QUANTIZATIONS:
        path = folder / f"ctranslate2-{quantization}"
        render.note(f"making {path.name}")
        write_encoder(encoder, path, quantization)
        encoders[f"ctranslate2 {quantization}"] = CTranslate2Encoder(
            path, _described("ctranslate2", quantization), threads=threads
        ).encode
        path = folder / f"onnx-{quantization}.onnx"
        render.note(f"making {path.name}")
        kept = write_encoder_onnx(path, encoder, quantization, calibration)
        described = msgspec.structs.replace(_described("onnx", quantization), float32_matrices=kept)
        encoders[f"onnx {quantization}"] = OnnxEncoder(path, described, threads=threads).encode
    encoders["torch float32"] = _in_torch(copy.deepcopy(encoder.module).eval())
    return encoders, len(kept)


def _described(backend: manifest.EncoderBackend, quantization: EncoderQuantization) -> manifest.Encoder:
    return manifest.Encoder(
        family="m2m_100",
        backend=backend,
        quantization=quantization,
        d_model=NLLB_600M["d_model"],
        max_tokens=MAX_TOKENS,
        prefix_tokens=counted.FRAME[0],
        suffix_tokens=counted.FRAME[1],
    )


def _in_torch(module: Any) -> Encode:
    def encode(batch: Sequence[Sequence[int]]) -> object:
        longest = max(map(len, batch))
        ids_NL = np.ones((len(batch), longest), np.int64)
        mask_NL = np.zeros_like(ids_NL)
        for row, ids in enumerate(batch):
            ids_NL[row, : len(ids)], mask_NL[row, : len(ids)] = ids, 1
        with torch.inference_mode():
            return module(input_ids=torch.from_numpy(ids_NL), attention_mask=torch.from_numpy(mask_NL))

    return encode


if __name__ == "__main__":
    main()
