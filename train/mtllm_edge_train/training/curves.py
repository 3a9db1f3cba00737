"""Plot of the metrics of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_NOT_PLOTTED = ("step", "seconds_per_step")


def draw_curves(history: Sequence[Mapping[str, float]], path: Path, *, title: str) -> None:
    """Plot each metric of a log against the step, in one panel each, as PNG; early entries may lack a metric."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in history[-1] if name not in _NOT_PLOTTED]
    figure = Figure(figsize=(8, 0.6 + 1.7 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    figure.suptitle(title)
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for name, panel in zip(names, panels, strict=True):
        entries = [entry for entry in history if name in entry]
        panel.plot([entry["step"] for entry in entries], [entry[name] for entry in entries], linewidth=1.2)
        panel.set_ylabel(name.replace("_", " "))
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    figure.align_ylabels(panels)
    figure.savefig(path, dpi=100)
