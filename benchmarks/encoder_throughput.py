"""Compare the encoder's engines: `python benchmarks/encoder_throughput.py`.

An encoder with random weights in the shape of NLLB-200-distilled-600M reads texts with the token counts of the demo's
sentences, in CTranslate2 and ONNX Runtime (float32 and int8) and in PyTorch. All have the same batches and threads, and
take turns. The last line on stdout is the result as JSON, which is also written.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import click

from mtllm_edge_bench import scripts
from mtllm_edge_bench.scripts import BENCHMARKS, DEMO_TOPICS, output_option, repeats_option, require_extra, run

require_extra()
import torch

from mtllm_edge import console
from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.backends.encoders.onnx import OnnxEncoder
from mtllm_edge.bundle.manifest import TOKENIZER_NAME
from mtllm_edge.tokenization.batching import TOKENS_PER_BATCH, plan_batches
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge_bench.report.report import Statistic
from mtllm_edge_bench.synthetic.demo_corpus import demo_rows, synthetic_corpus
from mtllm_edge_bench.synthetic.nllb import random_encoder, random_model
from mtllm_edge_bench.synthetic.shapes import LLMS, MAX_TOKENS, NLLB_600M
from mtllm_edge_bench.synthetic.tokenizer import PREFIX_TOKENS, SUFFIX_TOKENS
from mtllm_edge_export.encoders.ctranslate2 import write_encoder
from mtllm_edge_export.encoders.onnx import write_encoder_onnx
from mtllm_edge_export.encoders.spec import EncoderQuantization, encoder_spec
from mtllm_edge_train.models.encoder import LoadedEncoder
from mtllm_edge_train.models.stack import pad_right

QUANTIZATIONS: tuple[EncoderQuantization, ...] = ("float32", "int8")
_CALIBRATION = 32
"""Number of texts to compare int8 in ONNX with float32 on."""
Engines: TypeAlias = dict[str, Callable[[Sequence[Sequence[int]]], object]]
"""Name -> function that encodes a batch of token ids."""


class Result(scripts.Result, frozen=True, kw_only=True):
    """Throughput by engine and quantization."""

    threads: int
    texts: int
    tokens: int
    batch_tokens: int
    repeats: int
    texts_per_s: dict[str, Statistic]
    over_ctranslate2_int8: dict[str, float]
    """Ratios of medians."""
    float32_matrices: int
    """Number of the 72 matrices that stay in float32 in int8 in ONNX."""


@click.command()
@click.option("--texts", type=click.IntRange(1, 940), default=48, show_default=True, metavar="N", help="Sentences.")
@repeats_option
@output_option
def main(*, texts: int, repeats: int, out: Path) -> None:
    """Measure, and write encoders-<date>.json."""
    threads = default_threads()
    torch.set_num_threads(threads)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = random_encoder(random_model(NLLB_600M), folder)
        ids = load_ids(folder / TOKENIZER_NAME, texts)
        batches = plan_batches([len(row) for row in ids], max_tokens=TOKENS_PER_BATCH)
        engines, float32_matrices = load_engines(folder, encoder, ids[:_CALIBRATION], threads)
        for repeat in range(repeats + 1):  # the first is a warm-up
            for name, encode in engines.items():
                start = time.perf_counter()
                for batch in batches:
                    encode([ids[index] for index in batch])
                rate = len(ids) / (time.perf_counter() - start)
                if repeat:
                    rates.setdefault(name, []).append(rate)
                    console.note(f"{name}: {rate:.2f} texts/s")
    statistics = {name: Statistic.of(values) for name, values in rates.items()}
    baseline = statistics["ctranslate2 int8"].median
    result = Result(
        threads=threads,
        texts=len(ids),
        tokens=sum(map(len, ids)),
        batch_tokens=TOKENS_PER_BATCH,
        repeats=repeats,
        texts_per_s=statistics,
        over_ctranslate2_int8={name: round(rate.median / baseline, 3) for name, rate in statistics.items()},
        float32_matrices=float32_matrices,
    )
    scripts.write_json(result, out / f"encoders-{result.date}.json")
    scripts.print_json(result)


def load_ids(tokenizer_json: Path, texts: int) -> list[list[int]]:
    """Return random ids with the token counts of the demo's sentences, special tokens included."""
    corpus = synthetic_corpus(
        demo_rows(DEMO_TOPICS, texts),
        BENCHMARKS.parent / "reference/parts/tokenizer.json",
        encoder_vocabulary=NLLB_600M["vocab_size"],
        llm_vocabulary=LLMS["135m"].config["vocab_size"],
    )
    tokenizer = Tokenizer(
        tokenizer_json, prefix_tokens=PREFIX_TOKENS, suffix_tokens=SUFFIX_TOKENS, max_tokens=MAX_TOKENS
    )
    return [text.ids for text in tokenizer.encode(corpus.texts)]


def load_engines(folder: Path, encoder: LoadedEncoder, ids: list[list[int]], threads: int) -> tuple[Engines, int]:
    """Export and load all engines; also returns the number of float32 matrices of ONNX in int8."""
    engines: Engines = {}
    matrices: tuple[str, ...] = ()
    for quantization in QUANTIZATIONS:
        path = folder / f"ctranslate2-{quantization}"
        console.note(f"writing {path.name}")
        write_encoder(encoder, path, quantization)
        spec = encoder_spec(encoder, "ctranslate2", quantization, max_tokens=MAX_TOKENS)
        engines[f"ctranslate2 {quantization}"] = CTranslate2Encoder(path, spec, threads=threads).encode
        path = folder / f"{quantization}.onnx"
        console.note(f"writing {path.name}")
        matrices = write_encoder_onnx(path, encoder, quantization, ids)
        spec = encoder_spec(encoder, "onnx", quantization, max_tokens=MAX_TOKENS, float32_matrices=matrices)
        engines[f"onnx {quantization}"] = OnnxEncoder(path, spec, threads=threads).encode
    engines["torch float32"] = partial(encode_in_torch, encoder.module)
    return engines, len(matrices)


def encode_in_torch(module: torch.nn.Module, batch: Sequence[Sequence[int]]) -> object:
    """Encode a batch in PyTorch."""
    ids_NL, mask_NL = pad_right(batch)
    with torch.inference_mode():
        return module(input_ids=ids_NL, attention_mask=mask_NL)


if __name__ == "__main__":
    run(main)
