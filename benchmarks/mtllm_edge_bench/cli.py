"""The command `bench`; the heavy imports wait until the extra is known to be there."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec

from mtllm_edge import console
from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import UsageError
from mtllm_edge.extras import require
from mtllm_edge.files.atomic import atomic_folder, check_output_folder

REPORT_NAME = "bench.json"
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--texts", type=_PATH, required=True, metavar="FILE", help="Texts to read: .txt, .csv or .jsonl.")
@click.option("-o", "--output", "out", type=_PATH, required=True, metavar="FOLDER", help="Folder to write.")
@click.option("-t", "--task", metavar="NAME", help="The task; may be left out where the model has only one.")
@click.option("--translator", type=_PATH, metavar="FOLDER", help="Made by `export-translator`: for translate-test.")
@click.option("--teacher", type=_PATH, metavar="CHECKPOINT", help="With --translator: LLM made by `train finetune`.")
@click.option("--language", metavar="CODE", help="Language of all texts, for encoders that must be told.")
@click.option("--text-column", metavar="NAME", help="Column of csv and jsonl files that holds the text.")
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help="Of the labels, if any.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Of each contender."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; by default what suits.")
@click.option("--force", is_flag=True, help="Replace an existing benchmark, once the new one is complete.")
def bench(
    bundle: Path,
    *,
    texts: Path,
    out: Path,
    task: str | None,
    translator: Path | None,
    teacher: Path | None,
    language: str | None,
    text_column: str | None,
    label_column: str,
    repeats: int,
    threads: int | None,
    force: bool,
) -> None:
    """Measure what BUNDLE costs: speed by stage, tokens, memory, load time.

    Beside it, the bundle's engines alone; and with --translator and --teacher translate-test on the same texts: the
    translator, greedy and with beam 4, then the English LLM in the same engine and quantisation as in the bundle.

    The output folder gets bench.json, bench.md and charts; the last line on stdout is the report as JSON.
    """
    require("bench", "matplotlib", *(["torch", "transformers", "gguf"] if teacher else []))
    check_output_folder(out, force=force, marker=REPORT_NAME)
    if (translator is None) != (teacher is None):
        raise UsageError("translate-test needs both --translator, which translates, and --teacher, which reads that")
    opened = Bundle.open(bundle)
    llm = opened.manifest.llm
    quantization = llm.quantization
    if teacher is not None and llm.backend == "onnx":
        raise UsageError(
            f"{bundle} has its LLM in ONNX, and --teacher reads in GGUF; leave out --translator and --teacher"
        )
    task = opened.task_name(task)
    from mtllm_edge_bench.runner.corpus import check_labels, read_corpus

    corpus = read_corpus(texts, opened, task, language=language, text_column=text_column, label_column=label_column)
    from mtllm_edge.translator import TranslatorManifest
    from mtllm_edge_bench.report.files import save_files
    from mtllm_edge_bench.report.report import make_report
    from mtllm_edge_bench.runner.setups import Plan, measure_setup
    from mtllm_edge_bench.systems.english_llm import write_english_llm

    if translator is not None:
        TranslatorManifest.load(translator)
    threads = threads or default_threads()
    with tempfile.TemporaryDirectory(prefix="mtllm-edge-bench-") as scratch:
        reader = None
        if teacher is not None:
            reader = Path(scratch)
            console.note("writing the English LLM with its vocabulary")
            assert quantization != "int8"  # ONNX is refused above
            made = write_english_llm(teacher, reader, quantization=quantization)
            check_labels(made.tasks, opened, task, teacher)
        plan = Plan(bundle, task, corpus, threads, repeats, translator, reader, note=console.note)
        setup = measure_setup(plan)
    report = make_report({opened.manifest.name: setup}, setup.ratios, threads=threads)
    with atomic_folder(out, force=force, marker=REPORT_NAME) as folder:
        save_files(report, folder, "bench")
    click.echo(msgspec.json.encode(report).decode())
