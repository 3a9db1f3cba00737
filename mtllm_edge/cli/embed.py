"""`mtllm-edge embed`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtllm_edge import console
from mtllm_edge.backends.probing.offload import GpuLayers
from mtllm_edge.bundle.manifest import LlmBackend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.batch import Order, output_format, perform, sources_of
from mtllm_edge.cli.options import (
    INPUTS_HELP,
    PATH,
    bundle_option,
    input_options,
    long_option,
    output_options,
    texts_argument,
)
from mtllm_edge.jobs.inputs import Asked, Request
from mtllm_edge.jobs.row_languages import RowLanguages
from mtllm_edge.jobs.runner import Answer, Model
from mtllm_edge.tokenization.windows import LongTexts

if TYPE_CHECKING:
    pass


@click.command(epilog=INPUTS_HELP)
@texts_argument
@bundle_option
@input_options
@long_option
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write this file: .npy, .jsonl or .parquet.")
@output_options
def embed(
    texts: tuple[str, ...],
    bundle: Path,
    *,
    language: str | None,
    language_column: str | None,
    text_column: str | None,
    threads: int | None,
    llm_backend: LlmBackend | None,
    gpu_layers: GpuLayers,
    long_texts: LongTexts,
    output: Path | None,
    strict: bool,
    force: bool,
    restart: bool,
) -> None:
    """Turn texts into vectors.

    A .npy file holds one float32 row per text, in the order of the input. jsonl, which is also what a pipe gets, and
    parquet keep the input's columns and add embedding, truncated, language where it is given or identified, and windows
    where texts are read in them.
    """
    forms = {".npy": "npy", ".jsonl": "jsonl", ".parquet": "parquet"}
    form = output_format(output, forms, ("jsonl", "jsonl"))
    sources = sources_of(texts, text_column, output)
    opened = Bundle.open(bundle)
    languages = RowLanguages(opened.manifest, language, language_column)

    @contextmanager
    def load() -> Iterator[Model]:
        with console.spinner("loading the model"):
            from mtllm_edge.embedder import Embedder

            embedder = Embedder.load(opened, threads=threads, llm_backend=llm_backend, gpu_layers=gpu_layers)

        def answer(rows: Sequence[Asked], progress: Callable[[int], None]) -> list[Answer]:
            spoken, texts = zip(*rows, strict=True)
            windows = embedder.windows(texts, language=spoken, long_texts=long_texts)
            pooled_NE = windows.mean(embedder.pool(windows.encodings, progress=windows.text_progress(progress)))
            # 9 significant digits give every float32 back exactly
            return [
                {"embedding": [float(f"{x:.9g}") for x in pooled_E], "truncated": text[0].truncated}
                | ({"language": text[0].language} if languages.enabled else {})
                | ({"windows": len(text)} if long_texts != "cut" else {})
                for pooled_E, text in zip(pooled_NE, windows.by_text, strict=True)
            ]

        with embedder:
            yield answer

    perform(
        Order(
            command="embed",
            bundle=opened,
            sources=sources,
            request=Request(text_column=text_column, language=languages.language_of if languages.enabled else None),
            form=form,
            output=output,
            options={
                "--lang": language,
                "--language-column": language_column,
                "--text-column": text_column,
                "--llm-backend": llm_backend,
                "--long": long_texts,
            },
            strict=strict,
            force=force,
            restart=restart,
        ),
        load,
    )
