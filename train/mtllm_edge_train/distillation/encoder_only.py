"""Encoder-only classification: logistic regression on the mean states of the encoder, without the LLM.

It is the baseline for a stack, and a teacher of soft labels. The penalty is chosen by cross-validation on the training
rows, because a fixed one would make the baseline weaker than necessary.

The texts of a pair are encoded separately, and the features are ``[u, v, |u - v|, u * v]`` of their means u and v, as
usual for sentence pairs and a frozen encoder (InferSent, Conneau et al. 2017, arXiv 1705.02364). For multiple choice
they are those of the text and each choice, whose scores go through a softmax over the choices.
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
"""Candidates for the L2 penalty: scikit-learn's C from 0.01 to 100."""
_BATCH_TOKENS = 1024

EncodeIds = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]
"""Rows of token ids -> mean encoder state of each row (N, d_model)."""


class EncoderOnly:
    """An encoder with mean pooling."""

    def __init__(self, tokenizer: Tokenizer, encode_ids: EncodeIds) -> None:
        """Combine a tokenizer and an encoder."""
        self._tokenizer, self._encode_ids = tokenizer, encode_ids

    @classmethod
    def from_checkpoint(cls, folder: Path, *, device: str, dtype: torch.dtype = torch.float32) -> EncoderOnly:
        """Load the encoder of a checkpoint in torch.

        Raises:
            ModelError: It is missing or damaged.
        """
        encoder, tokenizer = loading.load_encoder_and_tokenizer(folder, StackConfig.load(folder))
        module = encoder.module.to(device, dtype)

        def encode_ids(batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
            ids_NL, mask_NL = pad_right(batch, device=device)
            with torch.no_grad():
                states_NLD = module(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
            means_ND: NDArray[np.float32] = masked_mean(states_NLD, mask_NL).cpu().numpy()
            return means_ND

        return cls(tokenizer, encode_ids)

    @property
    def languages(self) -> tuple[str, ...]:
        """Language codes of the encoder; empty if it needs none."""
        return self._tokenizer.languages

    def __call__(self, texts: Sequence[str], *, language: str | None = None) -> Tensor:
        """Mean states (N, d_model) of texts in one language; the code is used only by encoders that need it."""
        encoded = self._tokenizer.encode(texts, language=language if self.languages else None)
        lengths = [len(text.ids) for text in encoded]
        order = plan_batches(lengths, max_tokens=max(_BATCH_TOKENS, *lengths))
        rows = np.concatenate([self._encode_ids([encoded[index].ids for index in batch]) for batch in order])
        means_ND = np.empty_like(rows)
        means_ND[[index for batch in order for index in batch]] = rows
        return torch.from_numpy(means_ND)

    def features(self, items: Sequence[Input], *, language: str | None = None) -> list[Tensor]:
        """Features (V, D) of each input: one row for a text or pair, one per choice."""
        parts = [parts_of(item) for item in items]
        means_PD = self([part for own in parts for part in own], language=language)
        means = torch.split(means_PD, [len(own) for own in parts])
        return [own_PD if len(own_PD) == 1 else _pair_features(own_PD[:1], own_PD[1:]) for own_PD in means]

    def classifier(self, train: LabeledTexts, labels: Sequence[str], *, language: str | None = None) -> nn.Linear:
        """Fit a head on the features of training rows in one language, with a row per label or one row for choices."""
        vectors_VD = torch.cat(self.features(train.inputs, language=language))
        gold_N = torch.tensor([labels.index(label) if labels else int(label) for label in train.labels])
        scale = Standardizer.fit(vectors_VD)  # differences and products have a smaller range than means
        if train.kind == "sequence":
            scale = Standardizer(scale.mean, torch.ones_like(scale.mean))
        rows = len(labels) or 1
        penalty = choose_penalty(vectors_VD, gold_N, rows, scale=scale, penalties=_PENALTIES)
        return logistic_regression(vectors_VD, gold_N, rows, scale=scale, penalty=penalty)


def _pair_features(first_1D: Tensor, others_VD: Tensor) -> Tensor:
    """Features of a text paired with each of others: (1, D), (V, D) -> (V, 4 D)."""
    firsts_VD = first_1D.expand_as(others_VD)
    return torch.cat([firsts_VD, others_VD, (firsts_VD - others_VD).abs(), firsts_VD * others_VD], dim=1)
