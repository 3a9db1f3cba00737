"""Classify text in many languages, offline, with a translation encoder stacked under an LLM.

A trained stack is compiled into a *bundle* (`mtllm-edge export`), and a bundle is all that this package needs::

    from mtllm_edge import Classifier

    with Classifier.load("bundle", task="topic") as classifier:
        for prediction in classifier.classify(["Die Partei gewann die Wahl.", "Timu ilishinda mechi."]):
            print(prediction.label, prediction.confidence)
"""

from __future__ import annotations

import importlib.metadata

from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.classifier import Classifier
from mtllm_edge.embedder import Embedder
from mtllm_edge.errors import MtllmError
from mtllm_edge.tasks.prediction import Prediction

__all__ = ["Bundle", "Classifier", "Embedder", "MtllmError", "Prediction"]

try:
    __version__ = importlib.metadata.version("mtllm-edge")
except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"
