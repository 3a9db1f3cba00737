"""An encoder without the LLM: the means over its states, and a logistic regression on them.

The baseline that a stack must beat, and a teacher of what the LLM does not know. The penalty is chosen by
cross-validation on the training rows: with a fixed small one the classifier would be weaker than it has to be.

Of a pair each text is read by itself, and the regression sees ``[u, v, |u - v|, u * v]`` of their means u and v: the
usual comparison of sentences by a frozen encoder (InferSent, Conneau et al. 2017, arXiv 1705.02364). Of a text with
choices it sees that of the text and each choice, and gives each a score, under a softmax over the choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtllm_edge.inputs import Input, parts_of
from mtllm_edge.tokenization.batching import plan_batches
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge_train.checkpoints.config import StackConfig
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.linear_probe import choose_penalty, logistic_regression
from mtllm_edge_train.distillation.losses import Standardizer
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.stack import masked_mean, pad_right

_PENALTIES = (50.0, 16.0, 5.0, 1.6, 0.5, 0.16, 0.05, 0.016, 0.005)
"""On the squared weights of the regression, to choose from: scikit-learn's C from 0.01 to 100."""
_BATCH_TOKENS = 1024

Run = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]
"""Rows of token ids -> the mean over each row's encoder states, (N, d_model)."""


class EncoderOnly:
    """A reader of texts as the means over an encoder's states."""

    def __init__(self, tokenizer: Tokenizer, run: Run) -> None:
        """Join an encoder's tokenizer and the encoder itself."""
        self._tokenizer, self._run = tokenizer, run

    @classmethod
    def of_checkpoint(cls, folder: Path, *, device: str, dtype: torch.dtype = torch.float32) -> EncoderOnly:
        """The encoder of a checkpoint in torch, its weights in `dtype`.

        Raises:
            ModelError: It is missing or damaged.
        """
        encoder, tokenizer = loading.load_encoder_and_tokenizer(folder, StackConfig.load(folder))
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

    def vectors(self, items: Sequence[Input], *, language: str | None = None) -> list[Tensor]:
        """What the regression sees (V, D) of each text or pair, one row, or of choices, one each."""
        parts = [parts_of(item) for item in items]
        means_PD = self([part for own in parts for part in own], language=language)
        means = torch.split(means_PD, [len(own) for own in parts])
        return [own_PD if len(own_PD) == 1 else _compared(own_PD[:1], own_PD[1:]) for own_PD in means]

    def classifier(self, train: LabeledTexts, labels: Sequence[str], *, language: str | None = None) -> nn.Linear:
        """A head on `vectors` from training rows in one language; its rows are the labels, or one for choices."""
        vectors_VD = torch.cat(self.vectors(train.inputs, language=language))
        gold_N = torch.tensor([labels.index(label) if labels else int(label) for label in train.labels])
        scale = Standardizer.fit(vectors_VD)  # differences and products are smaller than means
        if train.kind == "sequence":
            scale = Standardizer(scale.mean, torch.ones_like(scale.mean))
        rows = len(labels) or 1
        penalty = choose_penalty(vectors_VD, gold_N, rows, scale=scale, penalties=_PENALTIES)
        return logistic_regression(vectors_VD, gold_N, rows, scale=scale, penalty=penalty)


def _compared(first_1D: Tensor, others_VD: Tensor) -> Tensor:
    """The module's comparison of a text with others: (1, D), (V, D) -> (V, 4 D)."""
    firsts_VD = first_1D.expand_as(others_VD)
    return torch.cat([firsts_VD, others_VD, (firsts_VD - others_VD).abs(), firsts_VD * others_VD], dim=1)
