"""Draw a report as PNG charts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtllm_edge_bench.report.report import Report
from mtllm_edge_bench.report.tables import TITLES

COLORS = {
    "mt_llm": "#1f5a99",
    "mt_llm_serial": "#7fa6cf",
    "mt_llm_onnx": "#0b2f5c",
    "translate_test": "#3a9d76",
    "translate_test_beam4": "#9bd0b9",
    "torch_float32": "#e69f00",
    "torch_bfloat16": "#f5d38a",
    "engines": "#a8a8a8",
}
"""Distinguishable in grayscale and with color blindness."""


def save_throughput(report: Report, path: Path) -> None:
    """Draw texts per second of each setup as bars, with whiskers from the lowest to the highest repeat."""
    pyplot = _pyplot()
    setups = report.setups
    figure, panels = pyplot.subplots(
        len(setups),
        1,
        figsize=(7, 1 + sum(0.6 + 0.4 * len(setup.measured) for setup in setups.values())),
        layout="constrained",
        squeeze=False,
        height_ratios=[1 + len(setup.measured) for setup in setups.values()],
    )
    for axes, (name, setup) in zip(panels[:, 0], setups.items(), strict=True):
        results = setup.measured
        rates = [measured.texts_per_s for measured in results.values()]
        axes.barh(
            range(len(results)),
            [rate.median for rate in rates],
            xerr=[[rate.median - rate.low for rate in rates], [rate.high - rate.median for rate in rates]],
            error_kw={"elinewidth": 0.9, "capsize": 1.8, "ecolor": "#333333"},
            color=[COLORS[system] for system in results],
        )
        axes.set_yticks(range(len(results)), [TITLES[system] for system in results], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(name, loc="left", fontsize=10)
        axes.grid(axis="x", color="#e0e0e0", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("texts per second")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def save_crossover(report: Report, path: Path) -> None:
    """Draw the speed of MT-LLM over translate-test against the LLM's size, one line per stride of the bridge."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    lines: dict[str, list[tuple[float, float]]] = {}
    for setup in report.setups.values():
        ratio = setup.ratios.get("over_translate_test")
        if ratio is not None:
            lines.setdefault(f"{setup.encoder}, stride {setup.stride}", []).append((setup.llm_parameters, ratio))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.axhline(1, color="#333333", linewidth=0.9, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlabel("number of weights of the LLM body")
    axes.set_ylabel("texts/s, MT-LLM over translate-test")
    axes.set_ylim(bottom=0)
    axes.grid(color="#e0e0e0", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
