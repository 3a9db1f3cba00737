"""The command `bench`; heavy imports follow the check of the extra."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from mtllm_edge import console
from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.extras import require
from mtllm_edge.files.atomic import atomic_folder, check_output_folder

REPORT_NAME = "bench.json"
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--texts", type=_PATH, required=True, metavar="FILE", help="Texts: .txt, .csv or .jsonl.")
@click.option("-o", "--output", "out", type=_PATH, required=True, metavar="FOLDER", help="Folder to write.")
@click.option("-t", "--task", metavar="NAME", help="Task; optional if the bundle has only one.")
@click.option("--translator", type=_PATH, metavar="FOLDER", help="Output of `export-translator`, for translate-test.")
@click.option("--teacher", type=_PATH, metavar="CHECKPOINT", help="LLM of `train finetune`, for translate-test.")
@click.option("--language", metavar="CODE", help="Language of all texts, for encoders that require one.")
@click.option("--text-column", metavar="NAME", help="Text column of csv and jsonl files.")
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help="Label column, if any.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Samples per system."
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; chosen automatically by default."
)
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
    """Measure speed by stage, tokens, memory and load time of BUNDLE.

    The engines alone are measured, too, and with --translator and --teacher translate-test on the same texts: the
    translator, greedy and with beam 4, then the English LLM in the bundle's engine and quantization.

    The output folder gets bench.json, bench.md and charts; the last line on stdout is the report as JSON.
    """
    require("bench", "matplotlib", *(["torch", "transformers", "gguf"] if teacher else []))
    check_output_folder(out, force=force, marker=REPORT_NAME)
    from mtllm_edge_bench.report.files import save_files
    from mtllm_edge_bench.report.report import make_report
    from mtllm_edge_bench.runner.corpus import read_corpus
    from mtllm_edge_bench.runner.setups import Plan, measure_with_teacher

    opened = Bundle.open(bundle)
    task = opened.task_name(task)
    corpus = read_corpus(texts, opened, task, language=language, text_column=text_column, label_column=label_column)
    threads = threads or default_threads()
    plan = Plan(bundle, task, corpus, threads, repeats, translator, log=console.note)
    setup = measure_with_teacher(plan, teacher)
    report = make_report({opened.manifest.name: setup}, setup.ratios, threads=threads)
    with atomic_folder(out, force=force, marker=REPORT_NAME) as folder:
        save_files(report, folder, "bench")
    click.echo(msgspec.json.encode(report).decode())
