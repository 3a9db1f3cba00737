"""The benchmark of this project: `python benchmarks/throughput.py --help`.

Real weights: the reference bundle. True shapes with random weights, made here: NLLB-200-distilled-600M under
SmolLM2-135M (its own weights, as GGUF and ONNX), Llama-3.2-1B and Llama-3-8B. Each beside translate-test with the same
translator and LLM; the smallest also beside the same stack in PyTorch. Random models read texts with as many tokens as
the demo's sentences have, and write translations as long as the English ones. Progress is on stderr; the last line of
stdout is the report as JSON.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from mtllm_edge import console
from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.bundle.manifest import MANIFEST_NAME
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import MtllmError, UsageError
from mtllm_edge.files.atomic import atomic_folder
from mtllm_edge.translator import TranslatorManifest
from mtllm_edge_bench.report.files import save_files
from mtllm_edge_bench.report.report import Report, Setup, make_report
from mtllm_edge_bench.runner.corpus import Corpus, check_labels
from mtllm_edge_bench.runner.setups import Plan, measure_setup
from mtllm_edge_bench.synthetic import shapes
from mtllm_edge_bench.synthetic.demo_corpus import demo_rows, synthetic_corpus
from mtllm_edge_bench.synthetic.nllb import random_model, write_random_nllb
from mtllm_edge_bench.systems.english_llm import write_english_llm
from mtllm_edge_bench.systems.pytorch import RANDOM_STACK_NAME, RandomStackConfig

HERE = Path(__file__).parent
REFERENCE = "reference"
SHAPES = {
    "nllb600m_135m_linear": ("135m", 1),
    "nllb600m_135m_strided": ("135m", 2),
    "nllb600m_1b_strided2": ("1b", 2),
    "nllb600m_8b_strided": ("8b", 2),
}
"""Setup -> the LLM's shape and the bridge's stride. The setup's ratio over greedy translate-test has its name."""
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
"""Ratio -> the setup that it is taken from, and its name there."""
_OF_THE_FORM_IN_USE = ("over_torch_fp32", "over_torch_bf16")
"""Ratios of the MT-LLM as users get it here, its LLM in GGUF or ONNX; all others are of GGUF."""
_TEXTS = {"1b": 32, "8b": 8}
"""LLM's shape -> texts, where not all are read: 8 billion weights take seconds for each."""
_REFERENCE_TEXTS = 4
"""How many times as many texts the reference bundle reads, so that its batches are many."""
_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--bundle", type=_PATH, default=HERE.parent / "build/reference", help="Reference bundle; `make demo`.")
@click.option("--translator", type=_PATH, metavar="FOLDER", help="For the reference bundle's translate-test.")
@click.option("--teacher", type=_PATH, metavar="CHECKPOINT", help="Likewise.")
@click.option("--setup", "chosen", multiple=True, type=click.Choice([REFERENCE, *SHAPES]), help="By default all.")
@click.option("--models", type=_PATH, default=HERE.parent / "build/bench", help="Folder of the random models, kept.")
@click.option("--texts", type=click.IntRange(1, 235), default=48, show_default=True, metavar="N", help="Of the demo's.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Of everything.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; by default what suits.")
@click.option("-o", "--output", "out", type=_PATH, default=HERE / "results", show_default="results", help="Folder.")
def main(
    *,
    bundle: Path,
    translator: Path | None,
    teacher: Path | None,
    chosen: tuple[str, ...],
    models: Path,
    texts: int,
    repeats: int,
    threads: int | None,
    out: Path,
) -> None:
    """Measure all setups, and write bench-<date>.json, .md and charts, anew after every setup.

    What was measured before on the same date stays in them, so that a long run may be made in pieces.
    """
    if (translator is None) != (teacher is None):
        raise UsageError("translate-test of the reference bundle needs both --translator and --teacher")
    threads = threads or default_threads()
    stem = f"bench-{datetime.date.today().isoformat()}"
    setups = measured_before(out / f"{stem}.json")
    for name in chosen or (REFERENCE, *SHAPES):
        console.note(f"== {name}")
        if name == REFERENCE:
            setups[name] = reference_setup(bundle, translator, teacher, _REFERENCE_TEXTS * texts, threads, repeats)
        else:
            setups[name] = shape_setup(name, models, texts, threads, repeats)
        report = make_report(setups, ratios(setups), threads=threads)
        save(report, out, stem)
    click.echo(msgspec.json.encode(report).decode())


def reference_setup(
    bundle: Path, translator: Path | None, teacher: Path | None, texts: int, threads: int, repeats: int
) -> Setup:
    """Real weights, real texts with labels."""
    task = "topic"
    opened = Bundle.open(bundle)
    rows = demo_rows(HERE / "demo_topics.csv", texts)
    corpus = Corpus([row.text for row in rows], [row.label for row in rows])
    with tempfile.TemporaryDirectory() as scratch:
        reader = None
        if translator is not None and teacher is not None:
            TranslatorManifest.load(translator)
            reader = Path(scratch)
            made = write_english_llm(teacher, reader, quantization=opened.manifest.llm.quantization)
            check_labels(made.tasks, opened, task, teacher)
        plan = Plan(bundle, task, corpus, threads, repeats, translator, reader, serial=True, note=console.note)
        return measure_setup(plan)


def shape_setup(name: str, models: Path, texts: int, threads: int, repeats: int) -> Setup:
    """Random weights of true shapes."""
    shape, stride = SHAPES[name]
    llm = shapes.LLMS[shape]
    nllb, body, reader, torch_stack = (
        models / part for part in ("nllb600m", shape, f"{shape}-reader", f"{shape}-torch")
    )
    make(nllb, lambda folder: write_random_nllb(random_model(shapes.NLLB_600M), folder, max_tokens=shapes.MAX_TOKENS))
    make(body, lambda folder: shapes.write_llm_body(llm, folder))
    make(reader, lambda folder: shapes.write_random_english_llm(llm, folder))
    made = RandomStackConfig(encoder=shapes.NLLB_600M, llm=llm.config)
    make(torch_stack, lambda folder: folder.joinpath(RANDOM_STACK_NAME).write_bytes(msgspec.json.encode(made)))
    bundle = models / name
    make(bundle, lambda folder: shapes.write_random_bundle(nllb, body, llm, stride, folder))
    corpus = synthetic_corpus(
        demo_rows(HERE / "demo_topics.csv", min(texts, _TEXTS.get(shape, texts))),
        HERE.parent / "reference/parts/tokenizer.json",
        encoder_vocabulary=shapes.NLLB_600M["vocab_size"],
        llm_vocabulary=llm.config["vocab_size"],
    )
    peers = torch_stack if name == _RATIOS["over_torch_fp32"][0] else None
    return measure_setup(
        Plan(
            bundle,
            shapes.TASK,
            corpus,
            threads,
            repeats,
            translator=nllb / "translator",
            reader=reader,
            checkpoint=peers,
            real_weights=False,
            note=console.note,
        )
    )


def measured_before(report: Path) -> dict[str, Setup]:
    """The setups of a report that is there."""
    if not report.exists():
        return {}
    return msgspec.json.decode(report.read_bytes(), type=Report).setups


def make(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder of models that is not there yet, whole or not at all."""
    if not folder.exists():
        console.note(f"making {folder}")
        with atomic_folder(folder, force=False, marker=MANIFEST_NAME) as scratch:
            write(scratch)


def ratios(setups: dict[str, Setup]) -> dict[str, float | None]:
    """Those of the whole run; None where the setup is not in it."""
    found: dict[str, float | None] = dict.fromkeys(_RATIOS)
    for name, (setup, ratio) in _RATIOS.items():
        if setup in setups:
            found[name] = setups[setup].ratio(ratio) if name in _OF_THE_FORM_IN_USE else setups[setup].ratios.get(ratio)
    return found


def save(report: Report, out: Path, stem: str) -> None:
    """Replace the results of this date."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        save_files(report, Path(scratch), stem)
        for path in Path(scratch).iterdir():
            path.replace(out / path.name)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except MtllmError as error:
        console.note(f"error: {error}")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        console.note("stopped; the setups that were finished are written")
        sys.exit(130)
