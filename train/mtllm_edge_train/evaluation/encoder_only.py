"""The encoder-only baseline: a stack must beat it for the LLM to be worth its cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.backends.loading import load_encoder
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.embedder import load_tokenizer
from mtllm_edge.inputs import Input
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.encoder_only import EncoderOnly
from mtllm_edge_train.evaluation.prediction_cache import Predictor
from mtllm_edge_train.models.stack import predict_labels


def load_encoder_only(model: Bundle | Path, *, device: str, threads: int | None) -> EncoderOnly:
    """Load the encoder of a bundle, with this number of CPU threads, or of a checkpoint, on this device.

    Raises:
        ModelError: The encoder is missing or damaged.
        EngineError: The engine rejects it.
    """
    if not isinstance(model, Bundle):
        return EncoderOnly.from_checkpoint(model, device=device)
    encoder = load_encoder(model, threads=threads or default_threads())
    return EncoderOnly(
        load_tokenizer(model), lambda batch: np.stack([states.mean(axis=0) for states in encoder.encode(batch)])
    )


def fit_encoder_only(encoder: EncoderOnly, train: LabeledTexts, *, language: str) -> Predictor:
    """Fit a logistic regression on the mean encoder states of training rows in one language."""
    labels = [] if train.kind == "multiple_choice" else [*train.counts]
    head = encoder.classifier(train, labels, language=language)

    def predict(texts: Sequence[Input], language: str) -> list[str]:
        return predict_labels(head, encoder.features(texts, language=language), labels)

    return predict
