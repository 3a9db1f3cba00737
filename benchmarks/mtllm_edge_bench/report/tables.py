"""Format a report as Markdown."""

from __future__ import annotations

from mtllm_edge.console import count
from mtllm_edge_bench.report.report import Report, Setup, Statistic, SystemResult

TITLES = {
    "mt_llm": "MT-LLM",
    "mt_llm_serial": "MT-LLM, without overlap",
    "mt_llm_onnx": "MT-LLM, LLM in ONNX Runtime",
    "translate_test": "translate-test, greedy",
    "translate_test_beam4": "translate-test, beam 4",
    "torch_float32": "the same stack in PyTorch, float32",
    "torch_bfloat16": "the same stack in PyTorch, bfloat16",
    "engines": "engines of the MT-LLM alone",
}
"""System -> title in tables and charts, in this order."""
_HEAD = (
    "| | texts/s | ms per text, by stage | tokens per text: encoder, written, LLM | peak RSS MB | load s | "
    "first s | cold start s | batch tokens | accuracy |"
)


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    machine = report.machine
    lines = [
        f"# mtllm-edge bench, {report.date}",
        "",
        f"{machine.cpu}, {machine.cores} cores, {report.threads} threads, {machine.memory_gb:g} GB, Python "
        f"{machine.python}. " + ", ".join(f"{name} {version}" for name, version in machine.versions.items()) + ".",
        "",
        *report.method,
    ]
    for name, setup in report.setups.items():
        lines += ["", f"## {name}", "", *_setup(setup)]
    lines += ["", "## Ratios", "", "| | |", "|---|---|"]
    lines += [
        f"| {name} | {'not measured' if value is None else f'{value:g}'} |" for name, value in report.ratios.items()
    ]
    lines += [f"| cold_start_s | {report.cold_start_s:g} |"] if report.cold_start_s is not None else []
    return "\n".join(lines) + "\n"


def _setup(setup: Setup) -> list[str]:
    weights = "real weights" if setup.real_weights else "random weights in real shapes"
    rows = [_row(TITLES[name], measured) for name, measured in setup.measured.items()]
    ratios = ", ".join(f"{name} {value:g}" for name, value in setup.ratios.items())
    return [
        f"{setup.description}; {weights}; bundle {setup.bundle_mb:g} MB; "
        f"{count(setup.texts, 'text')}, {count(setup.repeats, 'repeat')}.",
        "",
        _HEAD,
        "|" + "---|" * (_HEAD.count("|") - 1),
        *rows,
        "",
        f"{ratios}.",
    ]


def _row(title: str, measured: SystemResult) -> str:
    stages = ", ".join(f"{stage} {figure.median:g}" for stage, figure in measured.ms_per_text.items())
    tokens = ", ".join(
        f"{measured.tokens_per_text[name]:g}" if name in measured.tokens_per_text else "-"
        for name in ("encoder", "written", "llm")
    )
    cells = [
        title,
        _with_spread(measured.texts_per_s),
        stages,
        tokens,
        f"{measured.peak_rss_mb.median:.0f}",
        f"{measured.load_s.median:.2f}",
        f"{measured.first_prediction_s.median:.3f}",
        f"{measured.cold_start_s.median:.2f}",
        ", ".join(f"{knob} {tokens}" for knob, tokens in measured.batch_tokens.items()),
        "-" if measured.accuracy is None else f"{measured.accuracy:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _with_spread(figure: Statistic) -> str:
    return f"{figure.median:g} ({figure.low:g} to {figure.high:g})"
