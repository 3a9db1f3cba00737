"""An encoder without the LLM: the means over its states, and a logistic regression on them.

The baseline that a stack must beat, and a teacher of what the LLM does not know. The penalty is chosen by
cross-validation on the training rows: with a fixed small one the classifier would be weaker than it has to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtllm_edge.batching import plan_batches
from mtllm_edge.tokenizer import Tokenizer
from mtllm_edge_train import checkpoint
from mtllm_edge_train.config import StackConfig
from mtllm_edge_train.data import LabelledTexts
from mtllm_edge_train.model import masked_mean, pad_right
from mtllm_edge_train.probe import choose_penalty, logistic_regression
from mtllm_edge_train.targets import Standardizer

_PENALTIES = (50.0, 16.0, 5.0, 1.6, 0.5, 0.16, 0.05, 0.016, 0.005)
"""On the squared weights of the regression, to choose from: scikit-learn's C from 0.01 to 100."""
_BATCH_TOKENS = 1024

Run = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]
"""Rows of token ids -> the mean over each row's encoder states, (N, d_model)."""


class MeanStates:
    """A reader of texts as the means over an encoder's states."""

    def __init__(self, tokenizer: Tokenizer, run: Run) -> None:
        """Join an encoder's tokenizer and the encoder itself."""
        self._tokenizer, self._run = tokenizer, run

    @classmethod
    def of_checkpoint(cls, folder: Path, *, device: str, dtype: torch.dtype = torch.float32) -> MeanStates:
        """The encoder of a checkpoint in torch, its weights in `dtype`.

        Raises:
            ModelError: It is missing or damaged.
        """
        encoder, tokenizer = checkpoint.load_framed_encoder(folder, StackConfig.load(folder))
        module = encoder.module.to(device, dtype)

        def run(batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
            ids_NL, mask_NL = pad_right(batch, device=device)
            with torch.no_grad():
                states_NLD = module(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
            means_ND: NDArray[np.float32] = masked_mean(states_NLD, mask_NL).cpu().numpy()
            return means_ND

        return cls(tokenizer, run)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of which texts need one; empty where the encoder takes none."""
        return self._tokenizer.languages

    def __call__(self, texts: Sequence[str], *, language: str | None = None) -> Tensor:
        """Mean states (N, d_model) of texts in one language, whose code only some encoders need."""
        encoded = self._tokenizer.encode(texts, language=language if self.languages else None)
        lengths = [len(text.ids) for text in encoded]
        order = plan_batches(lengths, max_tokens=max(_BATCH_TOKENS, *lengths))
        rows = np.concatenate([self._run([encoded[index].ids for index in batch]) for batch in order])
        means_ND = np.empty_like(rows)
        means_ND[[index for batch in order for index in batch]] = rows
        return torch.from_numpy(means_ND)

    def classifier(self, train: LabelledTexts, labels: Sequence[str], *, language: str | None = None) -> nn.Linear:
        """A head on mean states from training rows in one language; its rows are the labels."""
        means_ND = self(train.texts, language=language)
        gold_N = torch.tensor([labels.index(label) for label in train.labels])
        centred = Standardizer(means_ND.mean(0), torch.ones(means_ND.shape[1]))
        penalty = choose_penalty(means_ND, gold_N, len(labels), scale=centred, penalties=_PENALTIES)
        return logistic_regression(means_ND, gold_N, len(labels), scale=centred, penalty=penalty)
