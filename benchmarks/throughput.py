"""Compare MT-LLMs with translate-test and PyTorch: `python benchmarks/throughput.py --help`.

Setups are the reference bundle with its real weights, and random weights in the shapes of NLLB-200-distilled-600M under
SmolLM2-135M (its own weights, in GGUF and ONNX), Llama-3.2-1B and Llama-3-8B. Each is compared with translate-test with
the same translator and LLM, the smallest also with the same stack in PyTorch. Random models read texts with the token
counts of the demo's sentences, and write translations as long as the English ones. Progress goes to stderr; the last
line on stdout is the report as JSON.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from mtllm_edge_bench.scripts import (
    BENCHMARKS,
    DEMO_TOPICS,
    PATH,
    bundle_option,
    output_option,
    print_json,
    repeats_option,
    require_extra,
    run,
)

require_extra()
from mtllm_edge import console
from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.bundle.manifest import MANIFEST_NAME
from mtllm_edge.files.atomic import atomic_folder
from mtllm_edge_bench.report.files import save_files
from mtllm_edge_bench.report.report import Report, Setup, make_report
from mtllm_edge_bench.runner.corpus import Corpus
from mtllm_edge_bench.runner.setups import Plan, measure_setup, measure_with_teacher
from mtllm_edge_bench.synthetic import shapes
from mtllm_edge_bench.synthetic.demo_corpus import demo_rows, synthetic_corpus
from mtllm_edge_bench.synthetic.nllb import random_model, write_random_nllb
from mtllm_edge_bench.systems.pytorch import RANDOM_STACK_NAME, RandomStackConfig

REFERENCE = "reference"
SHAPES = {
    "nllb600m_135m_linear": ("135m", 1),
    "nllb600m_135m_strided": ("135m", 2),
    "nllb600m_1b_strided2": ("1b", 2),
    "nllb600m_8b_strided": ("8b", 2),
}
"""Setup -> shape of the LLM and stride of the bridge. Its ratio over greedy translate-test has the same name."""
_RATIOS = {
    **{name: (name, "over_translate_test") for name in SHAPES},
    "serial_pipeline_over_engines": (REFERENCE, "serial_pipeline_over_engines"),
    "pipeline_over_engines": (REFERENCE, "pipeline_over_engines"),
    "rss_over_bundle": (REFERENCE, "rss_over_bundle"),
    "over_torch_fp32": ("nllb600m_135m_linear", "over_torch_float32"),
    "over_torch_bf16": ("nllb600m_135m_linear", "over_torch_bfloat16"),
    "over_torch_fp32_gguf": ("nllb600m_135m_linear", "over_torch_float32"),
    "over_torch_bf16_gguf": ("nllb600m_135m_linear", "over_torch_bfloat16"),
}
"""Ratio of the report -> setup and name of the ratio there."""
_DEFAULT_BACKEND_RATIOS = ("over_torch_fp32", "over_torch_bf16")
"""Ratios with the default LLM backend on this machine, GGUF or ONNX; all others are of GGUF."""
_TEXTS = {"1b": 32, "8b": 8}
"""Shape of the LLM -> limit of the number of texts: 8 billion weights take seconds per text."""
_REFERENCE_TEXTS = 4
"""Factor on the number of texts for the reference bundle, so that it has many batches."""


@click.command()
@bundle_option
@click.option("--translator", type=PATH, metavar="FOLDER", help="Translator, for translate-test of the bundle.")
@click.option("--teacher", type=PATH, metavar="CHECKPOINT", help="English LLM, for translate-test of the bundle.")
@click.option("--setup", "names", multiple=True, type=click.Choice([REFERENCE, *SHAPES]), help="Default: all.")
@click.option("--models", type=PATH, default=BENCHMARKS.parent / "build/bench", help="Folder to keep random models in.")
@click.option("--texts", type=click.IntRange(1, 235), default=48, show_default=True, metavar="N", help="Sentences.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; default: automatic.")
@repeats_option
@output_option
def main(
    *,
    bundle: Path,
    translator: Path | None,
    teacher: Path | None,
    names: tuple[str, ...],
    models: Path,
    texts: int,
    threads: int | None,
    repeats: int,
    out: Path,
) -> None:
    """Measure setups, and write bench-<date>.json, .md and charts after each of them.

    Earlier results of the same date are kept, so that a long run can be split.
    """
    threads = threads or default_threads()
    stem = f"bench-{datetime.date.today().isoformat()}"
    setups = load_setups(out / f"{stem}.json")
    for name in names or (REFERENCE, *SHAPES):
        console.note(f"== {name}")
        if name == REFERENCE:
            rows = demo_rows(DEMO_TOPICS, _REFERENCE_TEXTS * texts)
            corpus = Corpus([row.text for row in rows], [row.label for row in rows])
            plan = Plan(bundle, "topic", corpus, threads, repeats, translator, serial=True, log=console.note)
            setups[name] = measure_with_teacher(plan, teacher)
        else:
            setups[name] = measure_shape(name, models, texts, threads, repeats)
        report = make_report(setups, ratios(setups), threads=threads)
        save(report, out, stem)
    print_json(report)


def measure_shape(name: str, models: Path, texts: int, threads: int, repeats: int) -> Setup:
    """Measure a setup with random weights; models that do not exist yet are written first."""
    shape, stride = SHAPES[name]
    llm = shapes.LLMS[shape]
    nllb, body, english_llm, torch_stack = (
        models / folder for folder in ("nllb600m", shape, f"{shape}-english-llm", f"{shape}-torch")
    )
    make(nllb, lambda folder: write_random_nllb(random_model(shapes.NLLB_600M), folder, max_tokens=shapes.MAX_TOKENS))
    make(body, lambda folder: shapes.write_llm_body(llm, folder))
    make(english_llm, lambda folder: shapes.write_random_english_llm(llm, folder))
    config = RandomStackConfig(encoder=shapes.NLLB_600M, llm=llm.config)
    make(torch_stack, lambda folder: folder.joinpath(RANDOM_STACK_NAME).write_bytes(msgspec.json.encode(config)))
    bundle = models / name
    make(bundle, lambda folder: shapes.write_random_bundle(nllb, body, llm, stride, folder))
    corpus = synthetic_corpus(
        demo_rows(DEMO_TOPICS, min(texts, _TEXTS.get(shape, texts))),
        BENCHMARKS.parent / "reference/parts/tokenizer.json",
        encoder_vocabulary=shapes.NLLB_600M["vocab_size"],
        llm_vocabulary=llm.config["vocab_size"],
    )
    return measure_setup(
        Plan(
            bundle,
            shapes.TASK,
            corpus,
            threads,
            repeats,
            translator=nllb / "translator",
            english_llm=english_llm,
            checkpoint=torch_stack if name == _RATIOS["over_torch_fp32"][0] else None,
            real_weights=False,
            log=console.note,
        )
    )


def load_setups(report: Path) -> dict[str, Setup]:
    """Return the setups of a report, if it exists."""
    if not report.exists():
        return {}
    return msgspec.json.decode(report.read_bytes(), type=Report).setups


def make(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder of models atomically, unless it exists."""
    if not folder.exists():
        console.note(f"writing {folder}")
        with atomic_folder(folder, force=False, marker=MANIFEST_NAME) as scratch:
            write(scratch)


def ratios(setups: dict[str, Setup]) -> dict[str, float | None]:
    """Return the ratios of the report; None if the setup was not measured."""
    result: dict[str, float | None] = dict.fromkeys(_RATIOS)
    for name, (setup, ratio) in _RATIOS.items():
        if setup in setups:
            result[name] = (
                setups[setup].ratio(ratio) if name in _DEFAULT_BACKEND_RATIOS else setups[setup].ratios.get(ratio)
            )
    return result


def save(report: Report, out: Path, stem: str) -> None:
    """Replace the results of this date atomically."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        save_files(report, Path(scratch), stem)
        for path in Path(scratch).iterdir():
            path.replace(out / path.name)


if __name__ == "__main__":
    run(main)
