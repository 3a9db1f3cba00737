"""Tables and summaries that commands print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
    from mtllm_edge.jobs.language_summary import LanguageSummary
    from mtllm_edge.tasks.calibration_report import CalibrationReport
    from mtllm_edge.tasks.fitting import FitReport


_LANGUAGES_SHOWN = 10
_LABELS_SHOWN = 4


def predictions_table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """One line per text and what is said of it; a long text is cut to what the terminal has room for.

    The text stands last and without a border: terminals disagree on how wide the letters of many scripts are.
    """
    any_truncated = any(answer["truncated"] for _, answer in rows)
    any_windows = any(answer.get("windows", 1) > 1 for _, answer in rows)
    any_language = any(answer.get("language") is not None for _, answer in rows)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("label", no_wrap=True)
    table.add_column("confidence", justify="right", no_wrap=True)
    if any_truncated:
        table.add_column("truncated", no_wrap=True)
    if any_windows:
        table.add_column("windows", justify="right", no_wrap=True)
    if any_language:
        table.add_column("language", no_wrap=True)
    table.add_column("text", ratio=1)  # the only column that rich may narrow: its cells are cut, not wrapped
    for text, answer in rows:
        cells = [plain_text(answer["label"]), Text(f"{answer['confidence']:.3f}")]
        if any_truncated:
            cells.append(Text("yes" if answer["truncated"] else ""))
        if any_windows:
            cells.append(Text(f"{answer['windows']:,}"))
        if any_language:
            cells.append(plain_text(answer["language"] or ""))
        table.add_row(*cells, Text(printable(text), no_wrap=True, overflow="ellipsis"))
    return table


def languages_table(tally: LanguageSummary) -> Table:
    """What a job read in each language, the commonest first; the rare ones are put together."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    labelled = bool(tally.labels)
    table.add_column("language", no_wrap=True)
    for heading in ("texts", "mean confidence") if labelled else ("texts",):
        table.add_column(heading, justify="right", no_wrap=True)
    if labelled:
        table.add_column("labels", overflow="ellipsis", no_wrap=True)
    ranked = [language for language, _ in tally.texts.most_common()]
    groups = [(language, [language]) for language in ranked[:_LANGUAGES_SHOWN]]
    if rest := ranked[_LANGUAGES_SHOWN:]:
        groups.append((count(len(rest), "other"), rest))
    for name, languages in groups:
        texts = sum(tally.texts[language] for language in languages)
        cells = [plain_text(name), Text(f"{texts:,}")]
        if labelled:
            labels = sum((tally.labels[language] for language in languages), Counter[str]())
            shares = ", ".join(f"{label} {number / texts:.0%}" for label, number in labels.most_common(_LABELS_SHOWN))
            more = ", ..." if len(labels) > _LABELS_SHOWN else ""
            cells += [Text(f"{tally.mean_confidence(*languages):.3f}"), plain_text(shares + more)]
        table.add_row(*cells)
    return table


def fit_view(report: FitReport) -> RenderableType:
    """What cross-validation says of a fitted task, for people."""
    folds = f"{report.folds} folds" + ("" if report.groups is None else f" of {count(report.groups, 'group')}")
    unseen = "it" if report.groups is None else "its group"
    facts = {
        "judged": f"{count(report.texts, 'text')} in {folds}, each by a head that had not seen {unseen}",
        "accuracy": f"{report.accuracy:.3f} (the commonest label alone: {report.commonest:.3f})",
        "macro F1": f"{report.macro_f1:.3f}",
        "calibration error": f"{report.calibration_error:.3f}",
        "chosen": f"C {report.c:g}, temperature {report.temperature:.3g}",
    }
    table = Table(box=SIMPLE_HEAD)
    for heading in ("label", "texts", "precision", "recall", "F1"):
        table.add_column(heading, justify="left" if heading == "label" else "right", overflow="fold")
    for label, score in report.labels.items():
        row = (f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}")
        table.add_row(plain_text(label), f"{score.texts:,}", *row)
    return Group(facts_table(facts), "", table)


def calibration_view(report: CalibrationReport, unsure: str) -> RenderableType:
    """What cross-validation says of a calibrated task, for people."""
    fitted = report.fitted
    facts = {
        "judged": f"{count(report.texts, 'text')} in {report.folds} folds, each by temperatures that had not seen it",
        "accuracy": f"{report.accuracy:.3f}",
        "calibration error": f"{report.error_after:.3f} (before: {report.error_before:.3f})",
        "log loss": f"{report.loss_after:.3f} (before: {report.loss_before:.3f})",
        "temperature": f"{fitted.temperature:.3g}{_own(fitted.temperatures)}",
    }
    if report.threshold is not None:
        above = f"{report.coverage:.3f} of the texts, right in {report.accuracy_above:.3f} of them"
        facts["threshold"] = f"{report.threshold:.3f}; above it {above}; below it: {unsure}"
    if not report.languages:
        return facts_table(facts)
    table = Table(box=SIMPLE_HEAD)
    for heading in ("language", "texts", "temperature", "accuracy", "error before", "error after"):
        table.add_column(heading, justify="left" if heading == "language" else "right")
    for code, found in report.languages.items():
        figures = (fitted.temperatures[code], found.accuracy, found.error_before, found.error_after)
        table.add_row(plain_text(code), f"{found.texts:,}", *(f"{figure:.3f}" for figure in figures))
    return Group(facts_table(facts), "", table)


def _own(temperatures: Mapping[str, float]) -> str:
    """How many languages have a temperature of their own, and from where to where they go."""
    if not temperatures:
        return ""
    values = f"{min(temperatures.values()):.3g} to {max(temperatures.values()):.3g}"
    return f", of {count(len(temperatures), 'language')} {values}"


def _confidence(task: ManifestTask) -> str:
    """How a task's confidence is made, and when it abstains; nothing where it is left as it is."""
    calibrated = task.temperature != 1 or task.temperatures
    parts = [f"temperature {task.temperature:.3g}{_own(task.temperatures)}"] if calibrated else []
    if task.threshold is not None:
        parts.append(f"{task.abstain or UNSURE} below a confidence of {task.threshold:.3g}")
    return "".join(f"; {part}" for part in parts)


def manifest_view(manifest: Manifest) -> RenderableType:
    """A bundle's manifest for people."""
    encoder, llm = manifest.encoder, manifest.llm
    facts: dict[str, str | Text] = {
        "name": f"{manifest.name} (made with {manifest.created_with})",
        "encoder": f"{encoder.family}, {_encoder_form(encoder)}, {encoder.d_model} wide, "
        f"texts of up to {encoder.max_tokens} tokens, {_part_size(manifest.files, encoder.path)}",
        "bridge": _bridge(manifest),
        "LLM": f"{llm.architecture}, {llm.n_layer} layers, {llm.n_embd} wide, {llm.attention} attention, "
        f"{llm.pooling} pooling, "
        + " or ".join(f"{_quantization(form)}, {_part_size(manifest.files, form.file)}" for form in manifest.llms),
        "languages": _languages(manifest),
        "size": f"{file_size(sum(file.size for file in manifest.files.values()))} "
        f"in {count(len(manifest.files), 'file')}",
    }
    for name, task in manifest.tasks.items():
        worn = "" if task.adapter is None else f"; with an adapter, {_part_size(manifest.files, task.adapter)}"
        facts[f"task {name}"] = f"{answers(task.kind, task.labels)}{worn}{_confidence(task)}"
    if not manifest.tasks:
        facts["tasks"] = "none: it embeds, it does not classify"
    views: list[RenderableType] = [facts_table(facts)]
    if manifest.parity:
        views += ["", parity_table(manifest)]
    if manifest.sources:
        views += ["", _sources_table(manifest.sources)]
    return Group(*views)


def _encoder_form(encoder: EncoderSpec) -> str:
    left = len(encoder.float32_matrices)
    form = encoder.quantization + (" ONNX" if encoder.backend == "onnx" else "")
    return form + (f" with {left} matrices in float32" if left else "")


def _quantization(llm: LlmSpec) -> str:
    left = len(llm.float32_matrices)
    return f"{llm.quantization} {llm.backend.upper()}" + (f" with {left} matrices in f32" if left else "")


def _bridge(manifest: Manifest) -> str:
    stride, d_model = manifest.bridge.stride, manifest.encoder.d_model
    width = f"{d_model}" if stride == 1 else f"{stride} states of {d_model}"
    return f"{manifest.bridge.kind}, {width} to {manifest.llm.n_embd}"


def answers(kind: Kind, labels: Sequence[str]) -> str:
    """What a task reads, unless it is a text, and what it says."""
    if kind == "multiple_choice":
        return "multiple choice: the number of one of the text's choices"
    return f"{'a pair of texts: ' if kind == 'pair' else ''}{', '.join(labels)}"


def _languages(manifest: Manifest) -> str:
    if not manifest.encoder.needs_language:
        return "all that the encoder knows; it need not be told which"
    known = len(manifest.languages)
    return f"{known}, and --lang must tell which; `mtllm-edge languages` lists them"


def _part_size(files: Mapping[str, FileEntry], prefix: str) -> str:
    return file_size(sum(file.size for path, file in files.items() if path.startswith(prefix)))


def parity_table(manifest: Manifest) -> Table:
    """Return the comparison of each part with torch."""
    table = Table(title="against the torch stack", title_justify="left")
    for heading in ("part", "cosine, worst", "cosine, mean", "FVU", "sentences"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for parity in manifest.parity:
        table.add_row(
            plain_text(parity.component),
            f"{parity.cosine_min:.6f}",
            f"{parity.cosine_mean:.6f}",
            f"{parity.fvu:.2g}",
            str(parity.samples),
        )
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
