"""The result of an evaluation: what `eval.json` holds, computed from labels and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge import __version__
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.evaluation.bootstrap import CONFIDENCE, MEASURES, Interval, figures, interval
from mtllm_edge_train.evaluation.language_groups import Group

Scores = dict[str, dict[str, Interval]]
"""System -> measure -> figure."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One language, or the mean over a group of them."""

    kind: str
    """That of `Group`."""
    name: str
    languages: tuple[str, ...]
    texts: int
    scores: Scores
    ahead: Scores
    """For each baseline, the MT-LLM's figure minus the baseline's, on the same resamples."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `eval.json`."""

    created_with: str
    model: str
    task: str
    systems: dict[str, str]
    """Id of each system that ran -> what it consists of; the first is the MT-LLM."""
    left_out: dict[str, str]
    """Id of each that did not -> what it needs."""
    resamples: int
    seed: int
    confidence: float
    groups: list[Row]
    per_language: list[Row]

    @property
    def baselines(self) -> list[str]:
        """Ids of the systems that the MT-LLM is compared with."""
        return [*self.systems][1:]

    def summary(self) -> dict[str, object]:
        """The document without the single languages."""
        document: dict[str, object] = msgspec.to_builtins(self)
        del document["per_language"]
        document["groups"] = [
            msgspec.to_builtins(row) | {"languages": len(row.languages), "texts": row.texts} for row in self.groups
        ]
        return document


def make_report(
    data: Mapping[str, LabeledTexts],
    answers: Mapping[str, Mapping[str, Sequence[str]]],
    groups: Sequence[Group],
    *,
    model: str,
    task: str,
    systems: dict[str, str],
    left_out: dict[str, str],
    resamples: int,
    seed: int,
) -> Report:
    """Compare answers with labels.

    Args:
        data: Language -> texts and labels.
        answers: System -> language -> its labels for the texts.
        groups: What means are taken over.
        model: The MT-LLM's name.
        task: The task's.
        systems: As in `Report`, and the order of the systems.
        left_out: As in `Report`.
        resamples: Of the texts within each language.
        seed: Of the resamples.
    """
    measured = {
        language: figures(
            rows.labels, [answers[system][language] for system in systems], resamples=resamples, seed=(seed, place)
        )
        for place, (language, rows) in enumerate(data.items())
    }

    def row(group: Group) -> Row:
        mean_BSM = np.mean([measured[language] for language in group.languages], axis=0)
        return Row(
            kind=group.kind,
            name=group.name,
            languages=group.languages,
            texts=sum(len(data[language].texts) for language in group.languages),
            scores=_scores(mean_BSM, [*systems]),
            ahead=_scores(mean_BSM[:, :1] - mean_BSM[:, 1:], [*systems][1:]),
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


def _scores(figures_BSM: NDArray[np.float64], systems: Sequence[str]) -> Scores:
    return {
        system: {measure: interval(figures_BSM[:, place, m]) for m, measure in enumerate(MEASURES)}
        for place, system in enumerate(systems)
    }
