"""A stack's encoder without the LLM: what the stack must beat for the LLM to be worth its cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mtllm_edge.backends.cpu import default_threads
from mtllm_edge.backends.loading import load_encoder
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.embedder import load_tokenizer
from mtllm_edge.inputs import Input
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.encoder_only import EncoderOnly
from mtllm_edge_train.evaluation.prediction_cache import Ask


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
            self._mean_states = EncoderOnly.of_checkpoint(model, device=device)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of which texts need one; empty where the encoder takes none."""
        return self._mean_states.languages

    def fit(self, train: LabeledTexts, *, language: str) -> Ask:
        """A classifier from training rows in one language."""
        labels = [] if train.kind == "multiple_choice" else [*train.counts]
        head = self._mean_states.classifier(train, labels, language=language)

        def ask(texts: Sequence[Input], language: str) -> list[str]:
            vectors = self._mean_states.vectors(texts, language=language)
            with torch.no_grad():
                logits_VC = head(torch.cat(vectors))
            # a row of labels, or a column of choices
            found = [int(logits.argmax()) for logits in torch.split(logits_VC, [len(own_VD) for own_VD in vectors])]
            return [labels[index] if labels else str(index) for index in found]

        return ask


def _compiled(bundle: Bundle, threads: int) -> EncoderOnly:
    encoder = load_encoder(bundle, threads=threads)
    return EncoderOnly(
        load_tokenizer(bundle), lambda batch: np.stack([states.mean(axis=0) for states in encoder.encode(batch)])
    )
