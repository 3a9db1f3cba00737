"""Evaluate calibration of the reference model on held-out texts: `python benchmarks/calibration.py DATA`.

Topic: the development set of SIB-200 in all languages, or with --every in one of N; temperatures are fitted on half of
its sentences and evaluated on the other half, in the same languages. Sentiment: fitted on the validation set of NusaX,
evaluated on its test set, in the languages that have one. Writes `calibration.json`, `calibration.md` and
`calibration.png`; the last line on stdout has the pooled results as JSON.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from mtllm_edge_bench.scripts import (
    PATH,
    bundle_option,
    output_option,
    print_json,
    require_extra,
    run,
    write_json,
)

require_extra("bench", "matplotlib", "pyarrow")
import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.embedder import Embedder
from mtllm_edge.tasks.calibration import Temperatures, fit_temperatures, select_temperatures
from mtllm_edge.tasks.head import Head, softmax
from mtllm_edge.tasks.metrics import BINS, calibration_error, log_loss, reliability

METHODS = ("before", "task", "language")
"""Temperature 1; one per task; one per language."""
TITLES = {"before": "before", "task": "one temperature", "language": "one per language"}


@dataclass(frozen=True)
class Texts:
    """Labelled texts in several languages, with the head's logits."""

    languages: list[str]
    classes_N: NDArray[np.int64]
    logits_NC: NDArray[np.float64]

    def select(self, keep_N: NDArray[np.bool_]) -> Texts:
        """Return the selected texts."""
        languages = [code for code, keep in zip(self.languages, keep_N, strict=True) if keep]
        return Texts(languages, self.classes_N[keep_N], self.logits_NC[keep_N])


@dataclass(frozen=True)
class Selection:
    """Texts of a data set to use."""

    required_split: str
    """Split that a language must have."""
    every: int
    """Use one in N languages."""
    texts: int | None
    """Limit per language, from the first; None is all."""

    def rows(self, rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
        """Return the rows of a split, language by language."""
        languages = sorted({row["lang"] for row in rows if row["split"] == self.required_split})[:: self.every]
        groups = ([row for row in rows if row["lang"] == code and row["split"] == split] for code in languages)
        return [row for group in groups for row in group[: self.texts]]


class Scores(msgspec.Struct, frozen=True):
    """Scores of texts, by method."""

    texts: int
    accuracy: float
    calibration_error: dict[str, float]
    log_loss: dict[str, float]


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one task."""

    fitted_on: str
    evaluated_on: str
    temperature: float
    temperatures: dict[str, float]
    """By language."""
    pooled: Scores
    """Scores of all texts."""
    mean_of_languages: dict[str, float]
    """Mean over languages of their calibration errors, which few texts bias upwards."""
    gap_of_languages: dict[str, float]
    """Mean over languages of the difference between mean confidence and accuracy."""
    per_language: dict[str, Scores]
    diagram: dict[str, list[tuple[float, float, float]]]
    """Share of texts, confidence and accuracy of each bin."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Results of all tasks."""

    bundle: str
    encoder: str
    llm: str
    bins: int
    tasks: dict[str, TaskResult]


@click.command()
@click.argument("data", type=PATH)
@bundle_option
@click.option("--logits", type=PATH, help="Folder to cache logits in, for other runs with the same bundle.")
@click.option("--every", type=click.IntRange(min=1), default=1, help="Topic: use one in N languages.")
@click.option("--texts", type=click.IntRange(min=100), help="Sentiment: limit per language; default: all.")
@output_option
def main(*, data: Path, bundle: Path, logits: Path | None, every: int, texts: int | None, out: Path) -> None:
    """Measure, and write calibration.json, .md and .png."""
    opened = Bundle.open(bundle)
    sib, nusax = data / "eval" / "sib200.parquet", data / "eval" / "nusax_sentiment.parquet"
    topic_selection, sentiment_selection = Selection("dev", every, None), Selection("test", 1, texts)
    topics, sentences = load_texts(opened, sib, "topic", "dev", "category", selection=topic_selection, cache=logits)
    first_N = np.isin(sentences, halves(sentences)[0])
    valid, _ = load_texts(opened, nusax, "sentiment", "valid", "label", selection=sentiment_selection, cache=logits)
    test, _ = load_texts(opened, nusax, "sentiment", "test", "label", selection=sentiment_selection, cache=logits)
    tasks = {
        "topic": evaluate(
            topics.select(first_N), topics.select(~first_N), "half of the sentences of SIB-200 dev", "the other half"
        ),
        "sentiment": evaluate(valid, test, "NusaX valid", "NusaX test"),
    }
    manifest = opened.manifest
    result = Result(
        bundle=manifest.name,
        encoder=manifest.encoder.quantization,
        llm=manifest.llm.quantization,
        bins=BINS,
        tasks=tasks,
    )
    write_json(rounded(result), out / "calibration.json")
    (out / "calibration.md").write_text(markdown(result), encoding="utf-8")
    save_diagram(result, out / "calibration.png")
    print_json({name: task.pooled for name, task in tasks.items()})


def load_texts(
    bundle: Bundle, path: Path, task: str, split: str, label_column: str, *, selection: Selection, cache: Path | None
) -> tuple[Texts, NDArray[np.int64]]:
    """Return the selected texts of a split with their logits, and the sentence number of each."""
    rows = selection.rows(pyarrow.parquet.read_table(path).to_pylist(), split)
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["lang"], []).append(row["text"])
    head = Head.load(bundle.path, bundle.manifest.tasks[task])
    logits_NC = np.concatenate([*logits_of(bundle, head, texts, cache and cache / f"{task}-{split}")])
    classes_N = np.array([head.labels.index(row[label_column]) for row in rows])
    sentences_N = np.array([row.get("index_id", number) for number, row in enumerate(rows)])
    return Texts([row["lang"] for row in rows], classes_N, logits_NC), sentences_N


def logits_of(
    bundle: Bundle, head: Head, texts: dict[str, list[str]], cache: Path | None
) -> Iterator[NDArray[np.float64]]:
    """Yield the logits (texts, labels) of each language, from the cache if possible."""
    total = sum(map(len, texts.values()))
    with Embedder.load(bundle) as embedder, progress_bar(total) as progress:
        for code, batch in texts.items():
            path = None if cache is None else cache / f"{code}.npy"
            logits_NC = np.load(path) if path is not None and path.is_file() else np.empty((0, 0))
            if len(logits_NC) >= len(batch):
                progress(len(batch))
            else:
                logits_NC = head.logits(embedder.embed(batch, progress=progress))
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, logits_NC)
            yield logits_NC[: len(batch)]


def halves(sentences_N: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Split sentences in half; translations stay together, so that no sentence is in both halves."""
    numbers = sorted(set(sentences_N.tolist()))
    random.Random(0).shuffle(numbers)
    middle = (len(numbers) + 1) // 2
    return numbers[:middle], numbers[middle:]


def evaluate(fit: Texts, test: Texts, fitted_on: str, evaluated_on: str) -> TaskResult:
    """Fit temperatures on one set, and evaluate them on the other."""
    fitted = fit_temperatures(fit.logits_NC, fit.classes_N, fit.languages, sorted(set(fit.languages)))
    temperatures = {
        "before": np.ones(len(test.languages)),
        "task": select_temperatures(Temperatures(fitted.temperature, {}), test.languages),
        "language": select_temperatures(fitted, test.languages),
    }
    probabilities = {method: softmax(test.logits_NC, temperature_N) for method, temperature_N in temperatures.items()}
    codes_N = np.array(test.languages)
    masks = {code: codes_N == code for code in sorted(set(test.languages))}
    per_language = {code: scores_of(probabilities, test.classes_N, mask_N) for code, mask_N in masks.items()}
    return TaskResult(
        fitted_on=f"{fitted_on}, {len(fit.languages)} texts in {len(set(fit.languages))} languages",
        evaluated_on=f"{evaluated_on}, {len(test.languages)} texts in {len(masks)} languages",
        temperature=fitted.temperature,
        temperatures=dict(fitted.temperatures),
        pooled=scores_of(probabilities, test.classes_N, np.ones(len(codes_N), bool)),
        mean_of_languages={
            method: float(np.mean([scores.calibration_error[method] for scores in per_language.values()]))
            for method in METHODS
        },
        gap_of_languages={
            method: float(np.mean([gap(probabilities[method], test.classes_N, mask_N) for mask_N in masks.values()]))
            for method in METHODS
        },
        per_language=per_language,
        diagram={method: reliability(probabilities[method], test.classes_N) for method in METHODS},
    )


def scores_of(
    probabilities: dict[str, NDArray[np.float64]], classes_N: NDArray[np.int64], mask_N: NDArray[np.bool_]
) -> Scores:
    selected = {method: probabilities_NC[mask_N] for method, probabilities_NC in probabilities.items()}
    correct_N = selected["before"].argmax(axis=1) == classes_N[mask_N]
    return Scores(
        texts=int(mask_N.sum()),
        accuracy=float(correct_N.mean()),
        calibration_error={
            method: calibration_error(values_NC, classes_N[mask_N]) for method, values_NC in selected.items()
        },
        log_loss={method: log_loss(values_NC, classes_N[mask_N]) for method, values_NC in selected.items()},
    )


def gap(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64], mask_N: NDArray[np.bool_]) -> float:
    """Return the difference between mean confidence and accuracy."""
    correct_N = probabilities_NC[mask_N].argmax(axis=1) == classes_N[mask_N]
    return float(abs(probabilities_NC[mask_N].max(axis=1).mean() - correct_N.mean()))


def rounded(value: object) -> object:
    """Convert to plain data with four decimals."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def markdown(result: Result) -> str:
    """Return the result as tables in Markdown."""
    lines = [
        f"# Calibration of {result.bundle}",
        "",
        f"Made by `benchmarks/calibration.py`. Encoder {result.encoder}, LLM {result.llm}. ECE: expected calibration",
        f"error in {result.bins} equally wide bins of confidence. Temperatures are evaluated on held-out texts. The",
        "ECE of a single language is biased upwards, as it has few texts; the gap is the difference between its mean",
        "confidence and its accuracy.",
        "",
    ]
    for name, task in result.tasks.items():
        lines += [f"## {name}", "", f"Fitted on {task.fitted_on}; evaluated on {task.evaluated_on}.", ""]
        lines += [f"Temperature {task.temperature:.3f}; of languages {spread(list(task.temperatures.values()))}.", ""]
        lines += [row("", *(TITLES[method] for method in METHODS)), row("---", "---:", "---:", "---:")]
        summary = {
            "ECE, all texts": task.pooled.calibration_error,
            "log loss, all texts": task.pooled.log_loss,
            "ECE, mean of languages": task.mean_of_languages,
            "gap, mean of languages": task.gap_of_languages,
        }
        lines += [row(title, *(f"{values[method]:.3f}" for method in METHODS)) for title, values in summary.items()]
        lines += ["", f"Accuracy {task.pooled.accuracy:.3f}.", ""]
    for name, task in result.tasks.items():
        lines += [f"## {name}, every language", ""]
        lines += [
            row("language", "texts", "accuracy", "temperature", *(f"ECE, {TITLES[method]}" for method in METHODS))
        ]
        lines += [row("---", *["---:"] * 6)]
        for code, scores in task.per_language.items():
            errors = (f"{scores.calibration_error[method]:.3f}" for method in METHODS)
            temperature = task.temperatures.get(code, task.temperature)
            lines.append(row(code, scores.texts, f"{scores.accuracy:.3f}", f"{temperature:.3f}", *errors))
        lines.append("")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:.3f} to {high:.3f}, median {middle:.3f}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def save_diagram(result: Result, path: Path) -> None:
    """Draw the reliability diagram of each method, and the distribution of confidence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = {"before": "#a8a8a8", "task": "#e69f00", "language": "#1f5a99"}
    figure, grid = pyplot.subplots(
        2,
        len(result.tasks),
        figsize=(4.6 * len(result.tasks), 5.6),
        height_ratios=(3, 1),
        sharex=True,
        layout="constrained",
    )
    edges = np.arange(result.bins) / result.bins
    for (above, below), (name, task) in zip(grid.T, result.tasks.items(), strict=True):
        above.plot([0, 1], [0, 1], color="#333333", linewidth=0.8, linestyle="--")
        for method in METHODS:
            filled = [point for point in task.diagram[method] if point[0] > 0.002]  # smaller bins are noise
            label = f"{TITLES[method]}: ECE {task.pooled.calibration_error[method]:.3f}"
            above.plot(
                *zip(*[(confidence, accuracy) for _, confidence, accuracy in filled], strict=True),
                marker="o",
                markersize=3.5,
                color=colors[method],
                label=label,
            )
            shares = [share for share, _, _ in task.diagram[method]]
            below.step(np.append(edges, 1), [*shares, shares[-1]], where="post", color=colors[method])
        above.set(xlim=(0, 1), ylim=(0, 1), title=f"{result.bundle}: {name}")
        above.legend(loc="upper left", frameon=False, fontsize=8)
        below.set(xlabel="confidence")
        for axes in (above, below):
            axes.grid(color="#e0e0e0", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("share of texts")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main)
