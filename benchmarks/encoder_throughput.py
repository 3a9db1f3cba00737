"""The encoder alone, engine against engine: `python benchmarks/encoder_throughput.py`.

An encoder of NLLB-200-distilled-600M's shape with random weights reads texts with the token counts of the demo's
sentences: in CTranslate2 and ONNX Runtime, in float32 and int8, and in PyTorch. All have the same batches and threads
and take turns. The last line of stdout is the result as JSON, which is also written.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import click
import msgspec
import torch

from mtllm_edge import console
from mtllm_edge.backends.cpu import available_cores, default_threads, read_cpu
from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.backends.encoders.onnx import OnnxEncoder
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.manifest import TOKENIZER_NAME
from mtllm_edge.tokenization.batching import TOKENS_PER_BATCH, plan_batches
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge_bench.report.report import Statistic
from mtllm_edge_bench.synthetic.demo_corpus import demo_rows, synthetic_corpus
from mtllm_edge_bench.synthetic.nllb import random_encoder, random_model
from mtllm_edge_bench.synthetic.shapes import LLMS, MAX_TOKENS, NLLB_600M
from mtllm_edge_export.encoders.ctranslate2 import write_encoder
from mtllm_edge_export.encoders.onnx import write_encoder_onnx
from mtllm_edge_export.encoders.spec import EncoderQuantization
from mtllm_edge_train.models.encoder import LoadedEncoder
from mtllm_edge_train.models.stack import pad_right

HERE = Path(__file__).parent
QUANTIZATIONS: tuple[EncoderQuantization, ...] = ("float32", "int8")
_PATH = click.Path(path_type=Path)
_CALIBRATION = 32
"""Texts on which int8 in ONNX is compared with float32."""
Contenders: TypeAlias = dict[str, Callable[[Sequence[Sequence[int]]], object]]
"""Name -> what reads a batch of token ids."""


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
    texts_per_s: dict[str, Statistic]
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
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = random_encoder(random_model(NLLB_600M), folder)
        rows = read_ids(folder / TOKENIZER_NAME, texts)
        batches = plan_batches([len(ids) for ids in rows], max_tokens=TOKENS_PER_BATCH)
        encoders, kept = load_all(folder, encoder, rows[:_CALIBRATION], threads)
        for repeat in range(repeats + 1):  # the first is to warm up
            for name, encode in encoders.items():
                began = time.perf_counter()
                for batch in batches:
                    encode([rows[place] for place in batch])
                rate = len(rows) / (time.perf_counter() - began)
                if repeat:
                    rates.setdefault(name, []).append(rate)
                    console.note(f"{name}: {rate:.2f} texts/s")
    figures = {name: Statistic.of(found) for name, found in rates.items()}
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


def read_ids(tokenizer: Path, texts: int) -> list[list[int]]:
    """Random ids, with the token counts of the demo's sentences and the frame."""
    corpus = synthetic_corpus(
        demo_rows(HERE / "demo_topics.csv", texts),
        HERE.parent / "reference/parts/tokenizer.json",
        encoder_vocabulary=NLLB_600M["vocab_size"],
        llm_vocabulary=LLMS["135m"].config["vocab_size"],
    )
    prefix, suffix = tokenizer.FRAME
    reader = Tokenizer(tokenizer, prefix_tokens=prefix, suffix_tokens=suffix, max_tokens=MAX_TOKENS)
    return [text.ids for text in reader.encode(corpus.texts)]


def load_all(folder: Path, encoder: LoadedEncoder, texts: list[list[int]], threads: int) -> tuple[Contenders, int]:
    """Every contender by its name, and how many matrices of ONNX in int8, tried on the texts, stay in float32."""
    encoders: Contenders = {}
    kept: tuple[str, ...] = ()
    for quantization in QUANTIZATIONS:
        described = manifest.EncoderSpec(
            family=encoder.family,
            backend="ctranslate2",
            quantization=quantization,
            d_model=encoder.d_model,
            max_tokens=MAX_TOKENS,
            prefix_tokens=encoder.prefix_tokens,
            suffix_tokens=encoder.suffix_tokens,
        )
        path = folder / f"ctranslate2-{quantization}"
        console.note(f"making {path.name}")
        write_encoder(encoder, path, quantization)
        encoders[f"ctranslate2 {quantization}"] = CTranslate2Encoder(path, described, threads=threads).encode
        path = folder / f"{quantization}.onnx"
        console.note(f"making {path.name}")
        kept = write_encoder_onnx(path, encoder, quantization, texts)
        described = msgspec.structs.replace(described, backend="onnx", float32_matrices=kept)
        encoders[f"onnx {quantization}"] = OnnxEncoder(path, described, threads=threads).encode
    encoders["torch float32"] = partial(encode_in_torch, encoder.module)
    return encoders, len(kept)


def encode_in_torch(module: torch.nn.Module, batch: Sequence[Sequence[int]]) -> object:
    """What the engines are compared with."""
    ids_NL, mask_NL = pad_right(batch)
    with torch.inference_mode():
        return module(input_ids=ids_NL, attention_mask=mask_NL)


if __name__ == "__main__":
    main()
