"""Compare truncation and windows on texts longer than the encoder's limit: `python benchmarks/long_texts.py DATA`.

Long texts are made of sentences of SIB-200's development set, in one language each. *One topic*: all sentences of a
topic. *Mixed*: eight sentences of the topic and two of each other topic, so that the topic is the majority: in random
order (shuffled), the topic first (early), or last (late). Texts within the limit are left out. Writes
`long_texts.json` and `long_texts.md`; the last line on stdout is the JSON.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from mtllm_edge_bench.scripts import PATH, bundle_option, output_option, print_json, require_extra, run, write_json

require_extra("bench", "pyarrow")
import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.embedder import Embedder
from mtllm_edge.tasks.head import Head
from mtllm_edge.tokenization.windows import OVERLAP

KINDS = {
    "one topic": "all sentences of one topic",
    "shuffled": "mixed, in any order",
    "early": "mixed, the topic first",
    "late": "mixed, the topic last",
}
METHODS = ("cut", "pool")
OWN, OTHERS = 8, 2
"""Number of sentences of the topic, and of each other topic, in a mixed text."""
_RESAMPLES = 2000


class LongText(NamedTuple):
    """A generated text."""

    language: str
    kind: str
    topic: str
    text: str


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Results for one kind of text."""

    texts: int
    tokens: float
    """Mean length in tokens."""
    windows: float
    """Mean number of windows."""
    accuracy: dict[str, float]
    interval: dict[str, tuple[float, float]]
    """95 % bootstrap interval over texts."""
    pool_ahead_of_cut: tuple[float, float, float]
    """Paired difference with its interval."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Results of all kinds."""

    bundle: str
    languages: list[str]
    max_tokens: int
    overlap: int
    accuracy_of_sentences: float
    """Accuracy on the single sentences."""
    kinds: dict[str, Figures]


@click.command()
@click.argument("data", type=PATH)
@bundle_option
@click.option(
    "--languages",
    "count",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="Number of languages.",
)
@output_option
def main(*, data: Path, bundle: Path, count: int, out: Path) -> None:
    """Measure, and write long_texts.json and long_texts.md."""
    opened = Bundle.open(bundle)
    sentences = load_sentences(data / "eval" / "sib200.parquet")
    chosen = sorted(sentences)[:: max(1, len(sentences) // count)][:count]
    texts = [text for language in chosen for text in long_texts(language, sentences[language])]
    head = Head.load(opened.path, opened.manifest.tasks["topic"])
    with Embedder.load(opened) as embedder:
        limit = opened.manifest.encoder.max_tokens
        texts = [text for text in texts if not fits(embedder, text)]
        whole = embedder.windows([text.text for text in texts], long_texts="pool")
        with progress_bar(len(whole.encodings), "windows") as progress:
            pooled_WE = embedder.pool(whole.encodings, progress=progress)
        cut_NE = embedder.pool(embedder.encode([text.text for text in texts]))
        single = [(topic, text) for code in chosen for topic, some in sentences[code].items() for text in some]
        single_NE = embedder.pool(embedder.encode([text for _, text in single]))
    gold_N = np.array([head.labels.index(text.topic) for text in texts])
    answers = {
        "cut": head.probabilities(cut_NE),
        "pool": head.probabilities(whole.mean(pooled_WE)),
    }
    correct = {method: probabilities_NC.argmax(axis=1) == gold_N for method, probabilities_NC in answers.items()}
    encoder = opened.manifest.encoder
    twice = OVERLAP + len(encoder.prefix_tokens) + len(encoder.suffix_tokens)
    kinds_N, windows_N = np.array([text.kind for text in texts]), np.array(whole.counts)
    read_N = np.array([sum(len(window.ids) for window in windows) for windows in whole.by_text])
    tokens_N = read_N - twice * (windows_N - 1)
    result = Result(
        bundle=opened.manifest.name,
        languages=chosen,
        max_tokens=limit,
        overlap=OVERLAP,
        accuracy_of_sentences=float(
            np.mean(head.logits(single_NE).argmax(axis=1) == [head.labels.index(topic) for topic, _ in single])
        ),
        kinds={
            kind: figures_of(
                {method: correct_N[kinds_N == kind] for method, correct_N in correct.items()},
                tokens_N[kinds_N == kind],
                windows_N[kinds_N == kind],
            )
            for kind in KINDS
        },
    )
    write_json(result, out / "long_texts.json")
    (out / "long_texts.md").write_text(markdown(result), encoding="utf-8")
    print_json(result)


def load_sentences(path: Path) -> dict[str, dict[str, list[str]]]:
    """Return language -> topic -> sentences."""
    sentences: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    columns = ["lang", "category", "text"]
    for row in pyarrow.parquet.read_table(path, columns=columns, filters=[("split", "=", "dev")]).to_pylist():
        sentences[row["lang"]][row["category"]].append(row["text"])
    return sentences


def long_texts(language: str, sentences: dict[str, list[str]]) -> Iterator[LongText]:
    """Yield one text of each kind for each topic."""
    rng = random.Random(f"{language} 0")
    for topic in sorted(sentences):
        own = rng.sample(sentences[topic], len(sentences[topic]))
        yield LongText(language, "one topic", topic, " ".join(own))
        own = own[:OWN]
        others = [
            text for other in sorted(sentences) if other != topic for text in rng.sample(sentences[other], OTHERS)
        ]
        rng.shuffle(others)
        mixed = rng.sample(own + others, len(own + others))
        for kind, order in (("shuffled", mixed), ("early", own + others), ("late", others + own)):
            yield LongText(language, kind, topic, " ".join(order))


def fits(embedder: Embedder, text: LongText) -> bool:
    """Return whether a text is within the encoder's limit."""
    return not embedder.encode([text.text])[0].truncated


def figures_of(
    correct: dict[str, NDArray[np.bool_]], tokens_N: NDArray[np.int64], windows_N: NDArray[np.int64]
) -> Figures:
    """Compute the accuracy of each method, with bootstrap intervals on the same resamples."""
    drawn_BN = np.random.default_rng(0).integers(0, len(tokens_N), (_RESAMPLES, len(tokens_N)))
    means = {method: correct_N[drawn_BN].mean(axis=1) for method, correct_N in correct.items()}
    accuracy = {method: round(float(correct_N.mean()), 4) for method, correct_N in correct.items()}
    return Figures(
        texts=len(tokens_N),
        tokens=round(float(tokens_N.mean()), 1),
        windows=round(float(windows_N.mean()), 2),
        accuracy=accuracy,
        interval={method: interval(means_B) for method, means_B in means.items()},
        pool_ahead_of_cut=(round(accuracy["pool"] - accuracy["cut"], 4), *interval(means["pool"] - means["cut"])),
    )


def interval(values_B: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values_B, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def markdown(result: Result) -> str:
    """Return the result as a table in Markdown."""
    lines = [
        f"# Long texts with {result.bundle}",
        "",
        f"Made by `benchmarks/long_texts.py`: texts longer than {result.max_tokens} tokens, of sentences of SIB-200's",
        f"development set in {len(result.languages)} languages. Windows share {result.overlap} tokens. Accuracy of the",
        "topic, in brackets 95 % bootstrap intervals over texts; on the single sentences "
        f"{result.accuracy_of_sentences:.3f}.",
        f"A mixed text has {OWN} sentences of its topic and {OTHERS} of each other one.",
        "",
        "| texts | number | tokens | windows | cut | pool | pool ahead of cut |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, figures in result.kinds.items():
        cells = [KINDS[kind], str(figures.texts), f"{figures.tokens:.0f}", f"{figures.windows:.1f}"]
        for method in METHODS:
            low, high = figures.interval[method]
            cells.append(f"{figures.accuracy[method]:.3f} [{low:.3f}, {high:.3f}]")
        ahead, low, high = figures.pool_ahead_of_cut
        cells.append(f"{ahead:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Languages: {', '.join(result.languages)}.", ""])


if __name__ == "__main__":
    run(main)
