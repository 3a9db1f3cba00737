"""The result of an evaluation, saved as `eval.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge import __version__
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.evaluation.bootstrap import CONFIDENCE, MEASURES, Interval, bootstrap_scores, interval
from mtllm_edge_train.evaluation.language_groups import Group

Scores = dict[str, dict[str, Interval]]
"""System -> measure -> score."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one language, or means over a group of languages."""

    kind: str
    """As in `Group`."""
    name: str
    languages: tuple[str, ...]
    texts: int
    scores: Scores
    ahead: Scores
    """For each baseline, the score of the MT-LLM minus that of the baseline, on the same resamples."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `eval.json`."""

    created_with: str
    model: str
    task: str
    systems: dict[str, str]
    """System id -> description. The first is the evaluated model, the others are baselines."""
    left_out: dict[str, str]
    """Id of each system that did not run -> what it requires."""
    resamples: int
    seed: int
    confidence: float
    groups: list[Row]
    per_language: list[Row]

    @property
    def baselines(self) -> list[str]:
        """Ids of the systems that the evaluated model is compared with."""
        return [*self.systems][1:]

    def summary(self) -> dict[str, object]:
        """The report as plain values for JSON, without the single languages."""
        document: dict[str, object] = msgspec.to_builtins(self)
        del document["per_language"]
        document["groups"] = [
            msgspec.to_builtins(row) | {"languages": len(row.languages), "texts": row.texts} for row in self.groups
        ]
        return document


def make_report(
    data: Mapping[str, LabeledTexts],
    predictions: Mapping[str, Mapping[str, Sequence[str]]],
    groups: Sequence[Group],
    *,
    model: str,
    task: str,
    systems: dict[str, str],
    left_out: dict[str, str],
    resamples: int,
    seed: int,
) -> Report:
    """Score predictions, system -> language -> labels, on texts and on resamples drawn within each language."""
    scores = {
        language: bootstrap_scores(
            rows.labels,
            [predictions[system][language] for system in systems],
            resamples=resamples,
            seed=(seed, position),
        )
        for position, (language, rows) in enumerate(data.items())
    }

    def row(group: Group) -> Row:
        mean_BSM = np.mean([scores[language] for language in group.languages], axis=0)
        return Row(
            kind=group.kind,
            name=group.name,
            languages=group.languages,
            texts=sum(len(data[language].texts) for language in group.languages),
            scores=_intervals(mean_BSM, [*systems]),
            ahead=_intervals(mean_BSM[:, :1] - mean_BSM[:, 1:], [*systems][1:]),
        )

    return Report(
        created_with=f"mtllm-edge {__version__}",
        model=model,
        task=task,
        systems=systems,
        left_out=left_out,
        resamples=resamples,
        seed=seed,
        confidence=CONFIDENCE,
        groups=[row(group) for group in groups],
        per_language=[row(Group("language", language, (language,))) for language in data],
    )


def _intervals(scores_BSM: NDArray[np.float64], systems: Sequence[str]) -> Scores:
    return {
        system: {measure: interval(scores_BSM[:, s, m]) for m, measure in enumerate(MEASURES)}
        for s, system in enumerate(systems)
    }
