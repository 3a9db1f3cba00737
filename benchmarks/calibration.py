"""What calibration brings to the reference model: `python benchmarks/calibration.py DATA`.

Topic: the development set of SIB-200 in all its languages, or with --every in one of so many; temperatures are fitted
on half of its sentences and judged on the other half, in the same languages. Sentiment: fitted on the validation set of
NusaX, judged on its test set, in the languages that have one. Writes `calibration.json`, `calibration.md` and
`calibration.png`; the last line of output is the JSON of all languages together. Needs the extra `[bench]`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.progress import progress_bar
from mtllm_edge.embedder import Embedder
from mtllm_edge.tasks.calibration import Temperatures, fit_temperatures, select_temperatures
from mtllm_edge.tasks.head import Head, softmax
from mtllm_edge.tasks.metrics import BINS, calibration_error, log_loss, reliability

HERE = Path(__file__).parent
WAYS = ("before", "task", "language")
"""Temperature 1; one for the task; one for each language."""
WORDS = {"before": "before", "task": "one temperature", "language": "one for each language"}
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Texts:
    """Labelled texts in several languages, with the head's logits."""

    languages: list[str]
    classes_N: NDArray[np.int64]
    logits_NC: NDArray[np.float64]

    def part(self, keep_N: NDArray[np.bool_]) -> Texts:
        """Some of them."""
        languages = [code for code, keep in zip(self.languages, keep_N, strict=True) if keep]
        return Texts(languages, self.classes_N[keep_N], self.logits_NC[keep_N])


@dataclass(frozen=True)
class Chosen:
    """Which texts of a data set are read."""

    judged: str
    """The split that a language must have."""
    every: int
    """One in so many of those languages."""
    texts: int | None
    """Most in each language, the first ones; None is all."""

    def of(self, rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
        """Rows of a split, language by language."""
        languages = sorted({one["lang"] for one in rows if one["split"] == self.judged})[:: self.every]
        own = ([one for one in rows if one["lang"] == code and one["split"] == split] for code in languages)
        return [one for some in own for one in some[: self.texts]]


class Error(msgspec.Struct, frozen=True):
    """Of the same texts, in the three ways."""

    texts: int
    accuracy: float
    calibration_error: dict[str, float]
    log_loss: dict[str, float]


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """Of one task."""

    fitted_on: str
    judged_on: str
    temperature: float
    temperatures: dict[str, float]
    """Of the languages that were fitted."""
    pooled: Error
    """All texts together."""
    mean_of_languages: dict[str, float]
    """Mean over languages of their calibration errors, which are of few texts and so too large."""
    gap_of_languages: dict[str, float]
    """Mean over languages of the distance of mean confidence and accuracy."""
    per_language: dict[str, Error]
    diagram: dict[str, list[tuple[float, float, float]]]
    """Share of the texts, confidence and accuracy in each bin."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is written."""

    bundle: str
    encoder: str
    llm: str
    bins: int
    tasks: dict[str, TaskResult]


@click.command()
@click.argument("data", type=_PATH)
@click.option("--bundle", type=_PATH, default=HERE.parent / "build/reference", help="`make demo` makes the default.")
@click.option("--logits", type=_PATH, help="Folder that keeps the logits, for another run with the same bundle.")
@click.option("--every", type=click.IntRange(min=1), default=1, help="Topic: one in so many languages.")
@click.option("--texts", type=click.IntRange(min=100), help="Sentiment: most in each language; default: all.")
@click.option("-o", "--output", "out", type=_PATH, default=HERE / "results", show_default="results", help="Folder.")
def main(*, data: Path, bundle: Path, logits: Path | None, every: int, texts: int | None, out: Path) -> None:
    """Measure, and write calibration.json, .md and .png."""
    opened = Bundle.open(bundle)
    sib, nusax = data / "eval" / "sib200.parquet", data / "eval" / "nusax_sentiment.parquet"
    some, reviews = Chosen("dev", every, None), Chosen("test", 1, texts)
    topics, sentences = read(opened, sib, "topic", "dev", "category", chosen=some, kept=logits)
    first_N = np.isin(sentences, halves(sentences)[0])
    valid, _ = read(opened, nusax, "sentiment", "valid", "label", chosen=reviews, kept=logits)
    test, _ = read(opened, nusax, "sentiment", "test", "label", chosen=reviews, kept=logits)
    tasks = {
        "topic": judge(
            topics.part(first_N), topics.part(~first_N), "half of the sentences of SIB-200 dev", "the other half"
        ),
        "sentiment": judge(valid, test, "NusaX valid", "NusaX test"),
    }
    manifest = opened.manifest
    result = Result(
        bundle=manifest.name,
        encoder=manifest.encoder.quantization,
        llm=manifest.llm.quantization,
        bins=BINS,
        tasks=tasks,
    )
    out.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(rounded(result)), indent=1).decode()
    (out / "calibration.json").write_text(text + "\n", encoding="utf-8")
    (out / "calibration.md").write_text(markdown(result), encoding="utf-8")
    save_diagram(result, out / "calibration.png")
    click.echo(msgspec.json.encode({name: task.pooled for name, task in tasks.items()}).decode())


def read(
    bundle: Bundle, path: Path, task: str, split: str, label_column: str, *, chosen: Chosen, kept: Path | None
) -> tuple[Texts, NDArray[np.int64]]:
    """The chosen texts of a split with their logits, and the number of each one's sentence."""
    rows = chosen.of(pyarrow.parquet.read_table(path).to_pylist(), split)
    texts: dict[str, list[str]] = {}
    for one in rows:
        texts.setdefault(one["lang"], []).append(one["text"])
    head = Head.load(bundle.path, bundle.manifest.tasks[task])
    logits_NC = np.concatenate([*logits_of(bundle, head, texts, kept and kept / f"{task}-{split}")])
    classes_N = np.array([head.labels.index(one[label_column]) for one in rows])
    sentences_N = np.array([one.get("index_id", number) for number, one in enumerate(rows)])
    return Texts([one["lang"] for one in rows], classes_N, logits_NC), sentences_N


def logits_of(
    bundle: Bundle, head: Head, texts: dict[str, list[str]], kept: Path | None
) -> Iterator[NDArray[np.float64]]:
    """The logits of each language's texts, (texts, labels): kept ones, or new ones that are kept from then on."""
    total = sum(map(len, texts.values()))
    with Embedder.load(bundle) as embedder, progress_bar(total) as progress:
        for code, some in texts.items():
            saved = None if kept is None else kept / f"{code}.npy"
            logits_NC = np.load(saved) if saved is not None and saved.is_file() else np.empty((0, 0))
            if len(logits_NC) >= len(some):
                progress(len(some))
            else:
                logits_NC = head.logits(embedder.embed(some, progress=progress))
                if saved is not None:
                    saved.parent.mkdir(parents=True, exist_ok=True)
                    np.save(saved, logits_NC)
            yield logits_NC[: len(some)]


def halves(sentences_N: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Sentences in two halves, each with its translations: none is fitted on in one language and judged in another."""
    numbers = sorted(set(sentences_N.tolist()))
    random.Random(0).shuffle(numbers)
    middle = (len(numbers) + 1) // 2
    return numbers[:middle], numbers[middle:]


def judge(fit: Texts, test: Texts, fitted_on: str, judged_on: str) -> TaskResult:
    """Fit temperatures to one set, and measure the errors on the other."""
    fitted = fit_temperatures(fit.logits_NC, fit.classes_N, fit.languages, sorted(set(fit.languages)))
    temperatures = {
        "before": np.ones(len(test.languages)),
        "task": select_temperatures(Temperatures(fitted.temperature, {}), test.languages),
        "language": select_temperatures(fitted, test.languages),
    }
    probabilities = {way: softmax(test.logits_NC / found_N[:, None]) for way, found_N in temperatures.items()}
    codes_N = np.array(test.languages)
    masks = {code: codes_N == code for code in sorted(set(test.languages))}
    per_language = {code: error_of(probabilities, test.classes_N, mask_N) for code, mask_N in masks.items()}
    return TaskResult(
        fitted_on=f"{fitted_on}, {len(fit.languages)} texts in {len(set(fit.languages))} languages",
        judged_on=f"{judged_on}, {len(test.languages)} texts in {len(masks)} languages",
        temperature=fitted.temperature,
        temperatures=dict(fitted.temperatures),
        pooled=error_of(probabilities, test.classes_N, np.ones(len(codes_N), bool)),
        mean_of_languages={
            way: float(np.mean([found.calibration_error[way] for found in per_language.values()])) for way in WAYS
        },
        gap_of_languages={
            way: float(np.mean([gap(probabilities[way], test.classes_N, mask_N) for mask_N in masks.values()]))
            for way in WAYS
        },
        per_language=per_language,
        diagram={way: reliability(probabilities[way], test.classes_N) for way in WAYS},
    )


def error_of(
    probabilities: dict[str, NDArray[np.float64]], classes_N: NDArray[np.int64], mask_N: NDArray[np.bool_]
) -> Error:
    some = {way: found_NC[mask_N] for way, found_NC in probabilities.items()}
    right_N = some["before"].argmax(axis=1) == classes_N[mask_N]
    return Error(
        texts=int(mask_N.sum()),
        accuracy=float(right_N.mean()),
        calibration_error={way: calibration_error(found_NC, classes_N[mask_N]) for way, found_NC in some.items()},
        log_loss={way: log_loss(found_NC, classes_N[mask_N]) for way, found_NC in some.items()},
    )


def gap(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64], mask_N: NDArray[np.bool_]) -> float:
    """Distance of mean confidence and accuracy."""
    right_N = probabilities_NC[mask_N].argmax(axis=1) == classes_N[mask_N]
    return float(abs(probabilities_NC[mask_N].max(axis=1).mean() - right_N.mean()))


def rounded(value: object) -> object:
    """Plain data with four decimals."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def markdown(result: Result) -> str:
    """All of it as tables."""
    lines = [
        f"# Calibration of {result.bundle}",
        "",
        f"Made by `benchmarks/calibration.py`. Encoder {result.encoder}, LLM {result.llm}. ECE: expected calibration",
        f"error in {result.bins} equally wide bins of confidence. The temperatures have not seen the texts they are",
        "judged on. The ECE of a language is of few texts and so too large, in all three ways; the gap is the distance",
        "of its mean confidence from its accuracy.",
        "",
    ]
    for name, task in result.tasks.items():
        lines += [f"## {name}", "", f"Fitted on {task.fitted_on}; judged on {task.judged_on}.", ""]
        lines += [f"Temperature {task.temperature:.3f}; of languages {spread(list(task.temperatures.values()))}.", ""]
        lines += [row("", *(WORDS[way] for way in WAYS)), row("---", "---:", "---:", "---:")]
        summary = {
            "ECE, all texts": task.pooled.calibration_error,
            "log loss, all texts": task.pooled.log_loss,
            "ECE, mean of languages": task.mean_of_languages,
            "gap, mean of languages": task.gap_of_languages,
        }
        lines += [row(title, *(f"{found[way]:.3f}" for way in WAYS)) for title, found in summary.items()]
        lines += ["", f"Accuracy {task.pooled.accuracy:.3f}.", ""]
    for name, task in result.tasks.items():
        lines += [f"## {name}, every language", ""]
        lines += [row("language", "texts", "accuracy", "temperature", *(f"ECE, {WORDS[way]}" for way in WAYS))]
        lines += [row("---", *["---:"] * 6)]
        for code, found in task.per_language.items():
            errors = (f"{found.calibration_error[way]:.3f}" for way in WAYS)
            own = task.temperatures.get(code, task.temperature)
            lines.append(row(code, found.texts, f"{found.accuracy:.3f}", f"{own:.3f}", *errors))
        lines.append("")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:.3f} to {high:.3f}, median {middle:.3f}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def save_diagram(result: Result, path: Path) -> None:
    """Accuracy over confidence, before and after, and where the texts are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"before": "#a8a8a8", "task": "#e69f00", "language": "#1f5a99"}
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
        for way in WAYS:
            filled = [point for point in task.diagram[way] if point[0] > 0.002]  # of fewer texts, chance decides
            label = f"{WORDS[way]}: ECE {task.pooled.calibration_error[way]:.3f}"
            above.plot(
                *zip(*[(sure, right) for _, sure, right in filled], strict=True),
                marker="o",
                markersize=3.5,
                color=colours[way],
                label=label,
            )
            shares = [share for share, _, _ in task.diagram[way]]
            below.step(np.append(edges, 1), [*shares, shares[-1]], where="post", color=colours[way])
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
    main()
