"""A stack's encoder without the LLM: what the stack must beat for the LLM to be worth its cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mtllm_edge.bundle import ENCODER_NAME, Bundle
from mtllm_edge.embedder import load_tokenizer
from mtllm_edge.machine import default_threads
from mtllm_edge_train.data import LabelledTexts
from mtllm_edge_train.evaluation.answers import Ask
from mtllm_edge_train.mean_states import MeanStates


class EncoderAlone:
    """The encoder of a bundle or a checkpoint."""

    def __init__(self, model: Bundle | Path, *, device: str, threads: int | None) -> None:
        """Load the encoder.

        Args:
            model: A bundle, or the folder of a checkpoint.
            device: Of a checkpoint's encoder.
            threads: Of a bundle's encoder; None takes what suits.

        Raises:
            ModelError: It is missing or damaged.
            EngineError: An engine refuses.
        """
        if isinstance(model, Bundle):
            self._mean_states = _compiled(model, threads or default_threads())
        else:
            self._mean_states = MeanStates.of_checkpoint(model, device=device)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of which texts need one; empty where the encoder takes none."""
        return self._mean_states.languages

    def fit(self, train: LabelledTexts, *, language: str) -> Ask:
        """A classifier from training rows in one language."""
        labels = [*train.counts]
        head = self._mean_states.classifier(train, labels, language=language)

        def ask(texts: list[str], language: str) -> list[str]:
            with torch.no_grad():
                logits_NC = head(self._mean_states(texts, language=language))
            return [labels[index] for index in logits_NC.argmax(1).tolist()]

        return ask


def _compiled(bundle: Bundle, threads: int) -> MeanStates:
    from mtllm_edge.encoders.ctranslate2 import CTranslate2Encoder

    encoder = CTranslate2Encoder(bundle.path / ENCODER_NAME, bundle.manifest.encoder, threads=threads)
    return MeanStates(
        load_tokenizer(bundle), lambda batch: np.stack([states.mean(axis=0) for states in encoder.encode(batch)])
    )
