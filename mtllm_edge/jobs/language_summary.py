"""Counts of a job by language."""

from __future__ import annotations

from collections import Counter, defaultdict


class LanguageSummary:
    """Texts, labels and confidences counted by language."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.texts: Counter[str] = Counter()
        """Language -> number of texts."""
        self.labels: dict[str, Counter[str]] = defaultdict(Counter)
        """Language -> label -> number of texts."""
        self._confidence: dict[str, float] = defaultdict(float)

    def add(self, language: str | None, label: str | None = None, confidence: float = 0.0) -> None:
        """Count a text; one without a language is left out."""
        if language is None:
            return
        self.texts[language] += 1
        if label is not None:
            self.labels[language][label] += 1
            self._confidence[language] += confidence

    def mean_confidence(self, *languages: str) -> float:
        """Return the mean confidence over the texts of some languages."""
        return sum(self._confidence[code] for code in languages) / sum(self.texts[code] for code in languages)
