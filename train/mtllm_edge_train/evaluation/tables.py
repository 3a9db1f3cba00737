"""A report for people: tables on the terminal, and all of it as markdown."""

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
"""Languages shown at either end of the terminal's list."""


def terminal_view(report: Report, measure: str) -> RenderableType:
    """Groups, then the languages in which the MT-LLM is worst and best."""
    views: list[RenderableType] = [_table(report, report.groups, measure, title=_title(report, measure))]
    languages = sorted(report.per_language, key=lambda row: row.scores["mt_llm"][measure].value)
    if len(languages) > 2 * _EXTREMES:
        views += [
            _table(report, rows, measure, title=title)
            for title, rows in (
                ("worst languages", languages[:_EXTREMES]),
                ("best languages", languages[: -_EXTREMES - 1 : -1]),
            )
        ]
    elif len(languages) > 1:
        views.append(_table(report, languages, measure, title="every language"))
    spaced = [part for view in views for part in (view, "")]
    return Group(*spaced, *map(plain_text, _legend(report)))


def markdown(report: Report) -> str:
    """Groups and all languages, in both measures."""
    lines = [f"# {report.model}: {report.task}", "", *(f"- {line}" for line in _legend(report)), ""]
    for measure, name in MEASURE_NAMES.items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", *_markdown_table(report, report.groups, measure), ""]
    for measure, name in MEASURE_NAMES.items():
        lines += [f"## Every language, {name}", "", *_markdown_table(report, report.per_language, measure), ""]
    return "\n".join(lines)


def _title(report: Report, measure: str) -> str:
    return f"{report.model}, {report.task}: {MEASURE_NAMES[measure]}"


def _table(report: Report, rows: Sequence[Row], measure: str, *, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in _headings(report):
        table.add_column(heading, justify="left" if heading == "languages" else "right")
    kind = rows[0].kind
    for row in rows:
        if row.kind != kind:
            table.add_row()
            kind = row.kind
        table.add_row(*map(plain_text, _short(_cells(report, row, measure))))
        if report.baselines:
            ahead = [_ahead(row.ahead[system][measure]) for system in report.baselines]
            table.add_row("  MT-LLM ahead by", "", "", *_short(ahead))
    return table


def _short(cells: Sequence[str]) -> list[str]:
    """Figures as narrow as they can be: four systems must find room on a terminal."""
    return [re.sub(r"\b0\.", ".", cell).replace(", ", ",") for cell in cells]


def _markdown_table(report: Report, rows: Sequence[Row], measure: str) -> list[str]:
    headings = [*_headings(report), *(f"ahead of {TITLES[system]}" for system in report.baselines)]
    lines = [_line(headings), _line(["---", *["---:"] * (len(headings) - 1)])]
    for row in rows:
        ahead = [_ahead(row.ahead[system][measure]) for system in report.baselines]
        lines.append(_line([*_cells(report, row, measure), *ahead]))
    return lines


def _headings(report: Report) -> list[str]:
    return ["languages", "texts", *(TITLES[system] for system in report.systems)]


def _cells(report: Report, row: Row, measure: str) -> list[str]:
    name = row.name if row.languages == (row.name,) else f"{row.name} ({len(row.languages)})"
    return [name, f"{row.texts:,}", *(_figure(row.scores[system][measure]) for system in report.systems)]


def _figure(figure: Interval) -> str:
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _ahead(figure: Interval) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _legend(report: Report) -> list[str]:
    return [
        *(f"{TITLES[system]}: {what}" for system, what in report.systems.items()),
        *(f"{TITLES[system]} did not run: {needs}" for system, needs in report.left_out.items()),
        f"In brackets {report.confidence:.0%} bootstrap intervals over the texts within each language "
        f"({count(report.resamples, 'resample')}, seed {report.seed}). A group's figure is the mean over its "
        "languages; where they share their sentences (parallel test sets), its interval is too narrow.",
    ]
