"""Tables and summaries printed by commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mtllm_edge.bundle.manifest import UNSURE, EncoderSpec, FileEntry, LlmSpec, Manifest, WeightSource
from mtllm_edge.bundle.manifest import TaskSpec as ManifestTask
from mtllm_edge.console import count, facts_table, file_size, plain_text
from mtllm_edge.inputs import Kind
from mtllm_edge.safe_text import printable

if TYPE_CHECKING:
    from mtllm_edge.jobs.output import LanguageSummary
    from mtllm_edge.tasks.calibration import Temperatures
    from mtllm_edge.tasks.calibration_report import CalibrationReport
    from mtllm_edge.tasks.fitting import FitReport


_LANGUAGES_SHOWN = 10
_LABELS_SHOWN = 4


def _table(*headings: str, text: Collection[str] = ()) -> Table:
    """Return a table without a frame; columns of numbers are on the right, those in `text` on the left."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in text else "right", no_wrap=True)
    return table


def predictions_table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return a table with a line per text; long texts are cut to the width of the terminal.

    The text is the last column and has no border: terminals disagree on the width of the letters of many scripts.
    """
    columns: dict[str, Callable[[Mapping[str, Any]], Text]] = {
        "label": lambda result: plain_text(result["label"]),
        "confidence": lambda result: Text(f"{result['confidence']:.3f}"),
    }
    if any(result["truncated"] for _, result in rows):
        columns["truncated"] = lambda result: Text("yes" if result["truncated"] else "")
    if any(result.get("windows", 1) > 1 for _, result in rows):
        columns["windows"] = lambda result: Text(f"{result['windows']:,}")
    if any(result.get("language") is not None for _, result in rows):
        columns["language"] = lambda result: plain_text(result["language"] or "")
    table = _table(*columns, text=("label", "truncated", "language"))
    table.add_column("text", ratio=1)  # the only column that rich may narrow: its cells are cut, not wrapped
    for text, result in rows:
        cells = [cell(result) for cell in columns.values()]
        table.add_row(*cells, Text(printable(text), no_wrap=True, overflow="ellipsis"))
    return table


def languages_table(summary: LanguageSummary) -> Table:
    """Return a table of texts, confidence and labels by language, the most frequent first, rare ones in one line."""
    headings = ("language", "texts", "mean confidence") if summary.labels else ("language", "texts")
    table = _table(*headings, text=("language",))
    if summary.labels:
        table.add_column("labels", overflow="ellipsis", no_wrap=True)
    ranked = [language for language, _ in summary.texts.most_common()]
    groups = [(language, [language]) for language in ranked[:_LANGUAGES_SHOWN]]
    if rest := ranked[_LANGUAGES_SHOWN:]:
        groups.append((count(len(rest), "other"), rest))
    for name, languages in groups:
        texts = sum(summary.texts[language] for language in languages)
        cells = [plain_text(name), Text(f"{texts:,}")]
        if summary.labels:
            labels = sum((summary.labels[language] for language in languages), Counter[str]())
            shares = [f"{label} {number / texts:.0%}" for label, number in labels.most_common(_LABELS_SHOWN)]
            shares += ["..."] * (len(labels) > _LABELS_SHOWN)
            cells += [Text(f"{summary.mean_confidence(*languages):.3f}"), plain_text(", ".join(shares))]
        table.add_row(*cells)
    return table


def fit_view(report: FitReport) -> RenderableType:
    """Return the cross-validated scores of a fitted task."""
    folds = f"{report.folds} folds" + ("" if report.groups is None else f" of {count(report.groups, 'group')}")
    held_out = "it" if report.groups is None else "its group"
    facts = {
        "cross-validation": f"{count(report.texts, 'text')} in {folds}, each predicted without {held_out}",
        "accuracy": f"{report.accuracy:.3f} (most frequent label: {report.commonest:.3f})",
        "macro F1": f"{report.macro_f1:.3f}",
        "calibration error": f"{report.calibration_error:.3f}",
        "parameters": f"C {report.c:g}, temperature {report.temperature:.3g}",
    }
    table = _table("label", "texts", "precision", "recall", "F1", text=("label",))
    for label, score in report.labels.items():
        row = (f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}")
        table.add_row(plain_text(label), f"{score.texts:,}", *row)
    return Group(facts_table(facts), "", table)


def calibration_view(report: CalibrationReport, unsure: str) -> RenderableType:
    """Return the cross-validated scores of a calibrated task."""
    fitted = report.fitted
    facts = {
        "cross-validation": f"{count(report.texts, 'text')} in {report.folds} folds, each predicted without it",
        "accuracy": f"{report.accuracy:.3f}",
        "calibration error": f"{report.error_after:.3f} (before: {report.error_before:.3f})",
        "log loss": f"{report.loss_after:.3f} (before: {report.loss_before:.3f})",
        "temperature": _temperatures(fitted),
    }
    if report.threshold is not None:
        facts["threshold"] = (
            f"{report.threshold:.3f}; coverage {report.coverage:.3f}, accuracy above it {report.accuracy_above:.3f}; "
            f"label below it: {unsure}"
        )
    if not report.languages:
        return facts_table(facts)
    headings = ("language", "texts", "temperature", "accuracy", "error before", "error after")
    table = _table(*headings, text=("language",))
    for code, scores in report.languages.items():
        figures = (fitted.temperatures[code], scores.accuracy, scores.error_before, scores.error_after)
        table.add_row(plain_text(code), f"{scores.texts:,}", *(f"{figure:.3f}" for figure in figures))
    return Group(facts_table(facts), "", table)


def _temperatures(task: Temperatures | ManifestTask) -> str:
    """Return the temperature of a task, and the number and range of those of its languages."""
    if not task.temperatures:
        return f"{task.temperature:.3g}"
    values = f"{min(task.temperatures.values()):.3g} to {max(task.temperatures.values()):.3g}"
    return f"{task.temperature:.3g}, of {count(len(task.temperatures), 'language')} {values}"


def _confidence(task: ManifestTask) -> str:
    """Return temperatures and threshold of a task; empty without any."""
    calibrated = task.temperature != 1 or task.temperatures
    text = f"; temperature {_temperatures(task)}" if calibrated else ""
    if task.threshold is not None:
        text += f"; {task.abstain or UNSURE} below a confidence of {task.threshold:.3g}"
    return text


def manifest_view(manifest: Manifest) -> RenderableType:
    """Return the contents of a bundle."""
    encoder, llm, stride = manifest.encoder, manifest.llm, manifest.bridge.stride
    states = "" if stride == 1 else f"{stride} states of "
    languages = "all of the encoder, --lang is optional"
    if encoder.needs_language:
        languages = f"{len(manifest.languages)}, --lang is required; `mtllm-edge languages` lists them"
    facts: dict[str, str | Text] = {
        "name": f"{manifest.name} (made with {manifest.created_with})",
        "encoder": f"{encoder.family}, {_weights(encoder)}, {encoder.d_model} wide, "
        f"texts of up to {encoder.max_tokens} tokens, {_part_size(manifest.files, encoder.path)}",
        "bridge": f"{manifest.bridge.kind}, {states}{encoder.d_model} to {llm.n_embd}",
        "LLM": f"{llm.architecture}, {llm.n_layer} layers, {llm.n_embd} wide, {llm.attention} attention, "
        f"{llm.pooling} pooling, "
        + " or ".join(f"{_weights(llm)}, {_part_size(manifest.files, llm.file)}" for llm in manifest.llms),
        "languages": languages,
        "size": f"{file_size(sum(file.size for file in manifest.files.values()))} "
        f"in {count(len(manifest.files), 'file')}",
    }
    for name, task in manifest.tasks.items():
        adapter = "" if task.adapter is None else f"; with an adapter, {_part_size(manifest.files, task.adapter)}"
        facts[f"task {name}"] = f"{kind_and_labels(task.kind, task.labels)}{adapter}{_confidence(task)}"
    if not manifest.tasks:
        facts["tasks"] = "none: for embed only"
    views: list[RenderableType] = [facts_table(facts)]
    if manifest.parity:
        views += ["", parity_table(manifest)]
    if manifest.sources:
        views += ["", _sources_table(manifest.sources)]
    return Group(*views)


def _weights(part: EncoderSpec | LlmSpec) -> str:
    """Return quantization and file format of weights; CTranslate2 is not named."""
    weights = part.quantization + ("" if part.backend == "ctranslate2" else f" {part.backend.upper()}")
    return weights + (f" with {len(part.float32_matrices)} matrices in float32" if part.float32_matrices else "")


def kind_and_labels(kind: Kind, labels: Sequence[str]) -> str:
    """Return the kind of a task, unless it is single texts, and its labels."""
    if kind == "multiple_choice":
        return "multiple choice: the number of a choice"
    return f"{'a pair of texts: ' if kind == 'pair' else ''}{', '.join(labels)}"


def _part_size(files: Mapping[str, FileEntry], prefix: str) -> str:
    return file_size(sum(file.size for path, file in files.items() if path.startswith(prefix)))


def parity_table(manifest: Manifest) -> Table:
    """Return the comparison of each part with torch."""
    table = Table(title="comparison with torch", title_justify="left")
    for heading in ("part", "cosine, worst", "cosine, mean", "FVU", "sentences"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for parity in manifest.parity:
        figures = (f"{parity.cosine_min:.6f}", f"{parity.cosine_mean:.6f}", f"{parity.fvu:.2g}", f"{parity.samples}")
        table.add_row(plain_text(parity.component), *figures)
    return table


def _sources_table(sources: Sequence[WeightSource]) -> Table:
    table = Table(title="weights and licenses", title_justify="left")
    for heading in ("part", "from", "license"):
        table.add_column(heading, overflow="fold")
    for source in sources:
        license = plain_text(source.license)
        if source.is_non_commercial:
            license.append(" (NON-COMMERCIAL USE ONLY)", style="bold red")
        table.add_row(plain_text(source.part), plain_text(source.name), license)
    return table
