"""Count the results of a job by language."""

from __future__ import annotations

from collections import Counter, defaultdict


class LanguageSummary:
    """Numbers of texts and labels by language."""

    def __init__(self) -> None:
        self.texts: Counter[str] = Counter()
        """Language -> number of texts."""
        self.labels: dict[str, Counter[str]] = defaultdict(Counter)
        """Language -> label -> number of texts."""
        self._total_confidence: dict[str, float] = defaultdict(float)

    def add(self, language: str | None, label: str | None = None, confidence: float = 0.0) -> None:
        """Count a text; without a language it is ignored."""
        if language is None:
            return
        self.texts[language] += 1
        if label is not None:
            self.labels[language][label] += 1
            self._total_confidence[language] += confidence

    def mean_confidence(self, *languages: str) -> float:
        """Return the mean confidence over all texts of some languages."""
        total = sum(self._total_confidence[language] for language in languages)
        return total / sum(self.texts[language] for language in languages)
