"""Write the files of a report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mtllm_edge_bench.report import charts, tables
from mtllm_edge_bench.report.report import Report


def save_files(report: Report, folder: Path, stem: str) -> None:
    """Write JSON, Markdown and charts into an existing folder, with names that begin with `stem`."""
    (folder / f"{stem}.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    (folder / f"{stem}.md").write_text(tables.markdown(report), encoding="utf-8")
    charts.save_throughput(report, folder / f"{stem}-throughput.png")
    if len(report.setups) > 1:
        charts.save_crossover(report, folder / f"{stem}-crossover.png")
