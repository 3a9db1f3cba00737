"""What windows bring on texts that the encoder cannot take whole: `python benchmarks/long_texts.py DATA`.

Long texts are made of sentences of SIB-200's development set, in one language each. *One topic*: all sentences of a
topic. *Mixed*: eight sentences of the topic and two of each other one, so that the topic has the most: in any order
(shuffled), with the topic's own first (early), or last (late). Asked is for the topic; texts that the encoder can take
are left out. Writes `long_texts.json` and `long_texts.md`; the last line of output is the JSON. Needs the extra
`[bench]`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.embedder import Embedder
from mtllm_edge.tasks.head import Head
from mtllm_edge.tokenization.windows import OVERLAP

HERE = Path(__file__).parent
KINDS = {
    "one topic": "all sentences of one topic",
    "shuffled": "mixed, in any order",
    "early": "mixed, the topic first",
    "late": "mixed, the topic last",
}
WAYS = ("cut", "pool")
OWN, OTHERS = 8, 2
"""Sentences of the topic, and of each other topic, in a mixed text."""
_RESAMPLES = 2000
_PATH = click.Path(path_type=Path)


class LongText(NamedTuple):
    """A text that was put together."""

    language: str
    kind: str
    topic: str
    text: str


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of the texts of one kind."""

    texts: int
    tokens: float
    """Mean length, as the encoder would read it whole."""
    windows: float
    """Mean number."""
    accuracy: dict[str, float]
    interval: dict[str, tuple[float, float]]
    """95 % bootstrap interval over texts."""
    pool_ahead_of_cut: tuple[float, float, float]
    """Paired difference with its interval."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is written."""

    bundle: str
    languages: list[str]
    max_tokens: int
    overlap: int
    accuracy_of_sentences: float
    """On the single sentences that the texts are made of."""
    kinds: dict[str, Figures]


@click.command()
@click.argument("data", type=_PATH)
@click.option("--bundle", type=_PATH, default=HERE.parent / "build/reference", help="`make demo` makes the default.")
@click.option("--languages", "count", type=click.IntRange(min=1), default=16, show_default=True, help="How many.")
@click.option("-o", "--output", "out", type=_PATH, default=HERE / "results", show_default="results", help="Folder.")
def main(*, data: Path, bundle: Path, count: int, out: Path) -> None:
    """Measure, and write long_texts.json and long_texts.md."""
    opened = Bundle.open(bundle)
    sentences = read(data / "eval" / "sib200.parquet")
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
    right = {way: found_NC.argmax(axis=1) == gold_N for way, found_NC in answers.items()}
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
                {way: found_N[kinds_N == kind] for way, found_N in right.items()},
                tokens_N[kinds_N == kind],
                windows_N[kinds_N == kind],
            )
            for kind in KINDS
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(result), indent=1).decode()
    (out / "long_texts.json").write_text(text + "\n", encoding="utf-8")
    (out / "long_texts.md").write_text(markdown(result), encoding="utf-8")
    click.echo(msgspec.json.encode(result).decode())


def read(path: Path) -> dict[str, dict[str, list[str]]]:
    """Language -> topic -> its sentences."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    columns = ["lang", "category", "text"]
    for row in pyarrow.parquet.read_table(path, columns=columns, filters=[("split", "=", "dev")]).to_pylist():
        found[row["lang"]][row["category"]].append(row["text"])
    return found


def long_texts(language: str, sentences: dict[str, list[str]]) -> Iterator[LongText]:
    """One text of each kind for each topic."""
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
    """Whether the encoder takes it whole."""
    return not embedder.encode([text.text])[0].truncated


def figures_of(
    right: dict[str, NDArray[np.bool_]], tokens_N: NDArray[np.int64], windows_N: NDArray[np.int64]
) -> Figures:
    """Accuracy of each way, with bootstrap intervals on the same resamples."""
    drawn_BN = np.random.default_rng(0).integers(0, len(tokens_N), (_RESAMPLES, len(tokens_N)))
    means = {way: found_N[drawn_BN].mean(axis=1) for way, found_N in right.items()}
    accuracy = {way: round(float(found_N.mean()), 4) for way, found_N in right.items()}
    return Figures(
        texts=len(tokens_N),
        tokens=round(float(tokens_N.mean()), 1),
        windows=round(float(windows_N.mean()), 2),
        accuracy=accuracy,
        interval={way: interval(found_B) for way, found_B in means.items()},
        pool_ahead_of_cut=(round(accuracy["pool"] - accuracy["cut"], 4), *interval(means["pool"] - means["cut"])),
    )


def interval(values_B: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values_B, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def markdown(result: Result) -> str:
    """The figures as a table."""
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
    for kind, found in result.kinds.items():
        cells = [KINDS[kind], str(found.texts), f"{found.tokens:.0f}", f"{found.windows:.1f}"]
        for way in WAYS:
            low, high = found.interval[way]
            cells.append(f"{found.accuracy[way]:.3f} [{low:.3f}, {high:.3f}]")
        ahead, low, high = found.pool_ahead_of_cut
        cells.append(f"{ahead:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Languages: {', '.join(result.languages)}.", ""])


if __name__ == "__main__":
    main()
