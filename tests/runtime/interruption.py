"""What stops a classifier in the midst of a job; the fixture `stop` makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mtllm_edge import Classifier
from mtllm_edge.classifier import Prediction
from mtllm_edge.kinds import Input


class Stop:
    """Lets the classifier work for some calls, and raises then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.error = -1, BaseException()
        usual = Classifier.classify

        def classify(own: Classifier, texts: Sequence[Input], **options: Any) -> list[Prediction]:
            if self.calls == 0:
                self.calls = -1
                raise self.error
            self.calls -= 1
            return usual(own, texts, **options)

        monkeypatch.setattr(Classifier, "classify", classify)

    def after(self, calls: int, error: BaseException) -> None:
        self.calls, self.error = calls, error
