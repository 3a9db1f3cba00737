"""A report as a bar chart of the groups of languages, with error bars."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path

from mtllm_edge_train.evaluation.report import Report, Row
from mtllm_edge_train.evaluation.systems import TITLES
from mtllm_edge_train.evaluation.tables import MEASURE_NAMES

COLORS = {
    "mt_llm": "#1f5a99",
    "encoder_alone": "#e69f00",
    "translate_test": "#3a9d76",
    "llm_alone": "#a8a8a8",
}
"""Distinct in gray scale and for color-blind readers."""
_GAP = 0.4
"""Space between kinds of groups; a group is 1 wide."""


def save_chart(report: Report, measure: str, path: Path) -> None:
    """Save a bar chart of a report as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    positions = _positions(report.groups)
    bar = min(0.8 / len(report.systems), 0.3)
    width = max(6.4, 1 + 0.95 * (positions[-1] + 1))
    figure, axes = pyplot.subplots(figsize=(width, 4.6), layout="constrained")
    for number, system in enumerate(report.systems):
        shift = (number - (len(report.systems) - 1) / 2) * bar
        scores = [row.scores[system][measure] for row in report.groups]
        values = [score.value for score in scores]
        # With few texts a percentile interval may exclude the score itself.
        down = [max(score.value - score.low, 0) for score in scores]
        up = [max(score.high - score.value, 0) for score in scores]
        axes.bar(
            [position + shift for position in positions],
            values,
            bar * 0.92,
            yerr=[down, up],
            error_kw={"elinewidth": 0.9, "capsize": 1.8, "ecolor": "#333333"},
            color=COLORS[system],
            label=TITLES[system],
        )
    axes.set_xticks(positions, [_label(row) for row in report.groups], fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(positions[0] - 0.6, positions[-1] + 0.6)
    axes.set_ylim(0, 1)
    axes.set_ylabel(MEASURE_NAMES[measure])
    axes.set_title(f"{report.model}: {report.task}", loc="left")
    axes.grid(axis="y", color="#e0e0e0", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=len(report.systems), frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _positions(rows: list[Row]) -> list[float]:
    """Positions of the groups on the axis, with a gap between kinds of groups."""
    positions = [0.0]
    for previous, row in itertools.pairwise(rows):
        positions.append(positions[-1] + 1 + _GAP * (row.kind != previous.kind))
    return positions


def _label(row: Row) -> str:
    name = textwrap.fill(row.name, 13)
    return name if row.languages == (row.name,) else f"{name}\n({len(row.languages)})"
