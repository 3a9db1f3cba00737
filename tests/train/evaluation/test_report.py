"""Reports of given predictions: scores, terminal, markdown and chart."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtllm_edge.console import render
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.evaluation.chart import save_chart
from mtllm_edge_train.evaluation.language_groups import Group, language_groups
from mtllm_edge_train.evaluation.report import Report, make_report
from mtllm_edge_train.evaluation.tables import markdown, terminal_view


def make_test_report(languages: list[str], *, groups: list[Group] | None = None) -> Report:
    """A report in which the MT-LLM is always correct, and the baseline in every other text."""
    data = {language: LabeledTexts(["x"] * 4, ["a", "b", "a", "b"]) for language in languages}
    right = {language: ["a", "b", "a", "b"] for language in languages}
    half = {language: ["a", "a", "a", "a"] for language in languages}
    return make_report(
        data,
        {"mt_llm": right, "llm_alone": half},
        groups or language_groups(languages, source="eng_Latn"),
        model="small",
        task="topic",
        systems={"mt_llm": "a stack", "llm_alone": "an LLM"},
        left_out={"encoder_alone": "needs --train"},
        resamples=1000,
        seed=0,
    )


def test_scores_of_given_predictions() -> None:
    row = make_test_report(["eng_Latn"]).groups[0]
    assert (row.texts, row.languages) == (4, ("eng_Latn",))
    assert row.scores["mt_llm"]["accuracy"].low == row.scores["mt_llm"]["macro_f1"].high == 1
    half = row.scores["llm_alone"]
    assert (half["accuracy"].value, half["macro_f1"].value) == (0.5, pytest.approx(1 / 3, abs=1e-4))
    assert (half["accuracy"].low, half["accuracy"].high) == (0, 1)  # each with probability 1/16
    assert row.ahead["llm_alone"]["accuracy"].value == 0.5


def test_the_interval_of_a_group_is_narrower_than_that_of_a_language() -> None:
    report = make_test_report([f"aa{letter}_Latn" for letter in "abcdefghijkl"])
    group, language = (rows[0].scores["llm_alone"]["accuracy"] for rows in (report.groups, report.per_language))
    assert group.value == language.value == 0.5
    assert (group.high - group.low) < (language.high - language.low) / 3


def test_markdown() -> None:
    assert markdown(make_test_report(["deu_Latn", "eng_Latn"])) == GOLDEN


def test_the_terminal_shows_the_worst_and_best_languages() -> None:
    languages = [f"aa{letter}_Latn" for letter in "abcdefghijkl"]
    shown = render(terminal_view(make_test_report(languages), "accuracy")).decode()
    assert "worst languages" in shown
    assert sum(language in shown for language in languages) == 10
    assert max(map(len, shown.splitlines())) <= 120
    few = render(terminal_view(make_test_report(languages[:3]), "accuracy")).decode()
    assert "every language" in few
    assert ".500 [.000,1.000]" in few


def test_a_chart_is_wider_with_more_groups(tmp_path: Path) -> None:
    def width(report: Report) -> int:
        save_chart(report, "macro_f1", tmp_path / "chart.png")
        return int.from_bytes((tmp_path / "chart.png").read_bytes()[16:20], "big")

    languages = [f"aa{letter}_Latn" for letter in "abcdefghijkl"]
    groups = [Group("all", f"group {language}", (language,)) for language in languages]
    assert width(make_test_report(languages)) < width(make_test_report(languages, groups=groups))


GOLDEN = """\
# small: topic

- MT-LLM: a stack
- LLM alone: an LLM
- encoder alone did not run: needs --train
- In brackets 95% bootstrap intervals over the texts within each language (1,000 resamples, seed 0). \
A group's figure is the mean over its languages; where they share their sentences (parallel test sets), \
its interval is too narrow.

## Accuracy

| languages | texts | MT-LLM | LLM alone | ahead of LLM alone |
| --- | ---: | ---: | ---: | ---: |
| eng_Latn | 4 | 1.000 [1.000, 1.000] | 0.500 [0.000, 1.000] | +0.500 [+0.000, +1.000] |
| all others (1) | 4 | 1.000 [1.000, 1.000] | 0.500 [0.000, 1.000] | +0.500 [+0.000, +1.000] |

## Macro-F1

| languages | texts | MT-LLM | LLM alone | ahead of LLM alone |
| --- | ---: | ---: | ---: | ---: |
| eng_Latn | 4 | 1.000 [1.000, 1.000] | 0.333 [0.000, 1.000] | +0.667 [+0.000, +1.000] |
| all others (1) | 4 | 1.000 [1.000, 1.000] | 0.333 [0.000, 1.000] | +0.667 [+0.000, +1.000] |

## Every language, accuracy

| languages | texts | MT-LLM | LLM alone | ahead of LLM alone |
| --- | ---: | ---: | ---: | ---: |
| deu_Latn | 4 | 1.000 [1.000, 1.000] | 0.500 [0.000, 1.000] | +0.500 [+0.000, +1.000] |
| eng_Latn | 4 | 1.000 [1.000, 1.000] | 0.500 [0.000, 1.000] | +0.500 [+0.000, +1.000] |

## Every language, macro-F1

| languages | texts | MT-LLM | LLM alone | ahead of LLM alone |
| --- | ---: | ---: | ---: | ---: |
| deu_Latn | 4 | 1.000 [1.000, 1.000] | 0.333 [0.000, 1.000] | +0.667 [+0.000, +1.000] |
| eng_Latn | 4 | 1.000 [1.000, 1.000] | 0.333 [0.000, 1.000] | +0.667 [+0.000, +1.000] |
"""
