"""`mtllm-edge embed`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from mtllm_edge import console
from mtllm_edge.cli import options
from mtllm_edge.cli.batch import Batch, output_format, run_batch
from mtllm_edge.embedder import Embedder
from mtllm_edge.jobs.inputs import ModelInput
from mtllm_edge.jobs.runner import Model, Result

_FORMS = {".npy": "npy", ".jsonl": "jsonl", ".parquet": "parquet"}


@click.command(epilog=options.INPUTS_HELP)
@options.texts_argument
@options.bundle_option
@options.input_options
@options.long_option
@click.option("-o", "--output", type=options.PATH, metavar="FILE", help="Output file: .npy, .jsonl or .parquet.")
@options.output_options
@options.pass_batch_options
def embed(shared: options.BatchOptions) -> None:
    """Compute the vectors of texts.

    A .npy output has the vectors alone, a float32 row per text. jsonl and parquet have the columns of the input, and
    embedding, truncated, with given or identified languages language, and with --long pool windows.
    """
    batch = Batch.open(shared, output_format(shared.output, _FORMS, terminal="jsonl", pipe="jsonl"))

    @contextmanager
    def load() -> Iterator[Model]:
        with console.spinner("loading the model"):
            embedder = Embedder.load(batch.bundle, **shared.engines)
        with embedder:
            yield lambda rows, progress: _embed(embedder, batch, rows, progress)

    run_batch(batch, batch.reader("sequence"), load)


def _embed(
    embedder: Embedder, batch: Batch, rows: Sequence[ModelInput], progress: Callable[[int], None]
) -> list[Result]:
    """Return the output columns of each row."""
    languages, texts = zip(*rows, strict=True)
    windows = embedder.windows(texts, language=languages, long_texts=batch.options.long_texts)
    pooled_NE = windows.mean(embedder.pool(windows.encodings, progress=windows.text_progress(progress)))
    # 9 significant digits restore every float32 exactly
    return [
        {"embedding": [float(f"{x:.9g}") for x in pooled_E], "truncated": text[0].truncated}
        | ({"language": text[0].language} if batch.languages.enabled else {})
        | ({"windows": len(text)} if batch.options.long_texts != "cut" else {})
        for pooled_E, text in zip(pooled_NE, windows.by_text, strict=True)
    ]
