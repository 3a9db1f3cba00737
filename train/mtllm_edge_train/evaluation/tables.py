"""A report as tables: on the terminal, and in markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from mtllm_edge.console import count, plain_text
from mtllm_edge_train.evaluation.bootstrap import Interval
from mtllm_edge_train.evaluation.report import Report, Row
from mtllm_edge_train.evaluation.systems import TITLES

MEASURE_NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
_EXTREMES = 5
"""Number of languages at either end of the ranking that the terminal shows."""


def terminal_view(report: Report, measure: str) -> RenderableType:
    """Return the scores of the groups, and of the languages with the worst and best scores of the evaluated model."""
    model = next(iter(report.systems))
    views = [_table(report, report.groups, measure, f"{report.model}, {report.task}: {MEASURE_NAMES[measure]}")]
    languages = sorted(report.per_language, key=lambda row: row.scores[model][measure].value)
    if len(languages) > 2 * _EXTREMES:
        views.append(_table(report, languages[:_EXTREMES], measure, "worst languages"))
        views.append(_table(report, languages[: -_EXTREMES - 1 : -1], measure, "best languages"))
    elif len(languages) > 1:
        views.append(_table(report, languages, measure, "every language"))
    spaced: list[RenderableType] = [part for view in views for part in (view, "")]
    return Group(*spaced, *map(plain_text, _legend(report)))


def markdown(report: Report) -> str:
    """Return the scores of the groups and of all languages, in both measures."""
    lines = [f"# {report.model}: {report.task}", "", *(f"- {line}" for line in _legend(report)), ""]
    for measure, name in MEASURE_NAMES.items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", *_markdown_table(report, report.groups, measure), ""]
    for measure, name in MEASURE_NAMES.items():
        lines += [f"## Every language, {name}", "", *_markdown_table(report, report.per_language, measure), ""]
    return "\n".join(lines)


def _table(report: Report, rows: Sequence[Row], measure: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in _headings(report):
        table.add_column(heading, justify="left" if heading == "languages" else "right")
    kind = rows[0].kind
    for row in rows:
        if row.kind != kind:
            table.add_row()
            kind = row.kind
        table.add_row(*map(plain_text, _compact(_cells(report, row, measure))))
        if report.baselines:
            table.add_row("  MT-LLM ahead by", "", "", *_compact(_ahead_cells(report, row, measure)))
    return table


def _compact(cells: Sequence[str]) -> list[str]:
    """Shorten numbers, so that four systems fit on a terminal."""
    return [re.sub(r"\b0\.", ".", cell).replace(", ", ",") for cell in cells]


def _markdown_table(report: Report, rows: Sequence[Row], measure: str) -> list[str]:
    headings = [*_headings(report), *(f"ahead of {TITLES[system]}" for system in report.baselines)]
    cells = [[*_cells(report, row, measure), *_ahead_cells(report, row, measure)] for row in rows]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def _headings(report: Report) -> list[str]:
    return ["languages", "texts", *(TITLES[system] for system in report.systems)]


def _cells(report: Report, row: Row, measure: str) -> list[str]:
    name = row.name if row.languages == (row.name,) else f"{row.name} ({len(row.languages)})"
    return [name, f"{row.texts:,}", *(_score(row.scores[system][measure], "") for system in report.systems)]


def _ahead_cells(report: Report, row: Row, measure: str) -> list[str]:
    return [_score(row.ahead[system][measure], "+") for system in report.baselines]


def _score(score: Interval, sign: str) -> str:
    return f"{score.value:{sign}.3f} [{score.low:{sign}.3f}, {score.high:{sign}.3f}]"


def _legend(report: Report) -> list[str]:
    return [
        *(f"{TITLES[system]}: {description}" for system, description in report.systems.items()),
        *(f"{TITLES[system]} did not run: {needs}" for system, needs in report.left_out.items()),
        f"In brackets {report.confidence:.0%} bootstrap intervals over the texts within each language "
        f"({count(report.resamples, 'resample')}, seed {report.seed}). A group's figure is the mean over its "
        "languages; where they share their sentences (parallel test sets), its interval is too narrow.",
    ]
