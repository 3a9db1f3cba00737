"""A stack's encoder without the LLM: mean-pooled states under a logistic regression.

Of a pair each text is read by itself, and the regression sees ``[u, v, |u - v|, u * v]`` of their means u and v: the
usual comparison of sentences by a frozen encoder (InferSent, Conneau et al. 2017, arXiv 1705.02364). Of a text with
choices it sees that of the text and each choice, and gives each a score, under a softmax over the choices.

What a stack must beat for the LLM to be worth its cost. The penalty is chosen by cross-validation on the training rows:
with a fixed small one the baseline would be weaker than anybody has to have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mtllm_edge.batching import plan_batches
from mtllm_edge.bundle import ENCODER_NAME, Bundle
from mtllm_edge.embedder import load_tokenizer
from mtllm_edge.kinds import Input, parts_of
from mtllm_edge.machine import default_threads
from mtllm_edge.tokenizer import Tokenizer
from mtllm_edge_train import checkpoint
from mtllm_edge_train.config import StackConfig
from mtllm_edge_train.data import LabelledTexts
from mtllm_edge_train.evaluation.answers import Ask
from mtllm_edge_train.model import masked_mean, pad_right
from mtllm_edge_train.probe import choose_penalty, logistic_regression
from mtllm_edge_train.targets import Standardizer

_PENALTIES = (50.0, 16.0, 5.0, 1.6, 0.5, 0.16, 0.05, 0.016, 0.005)
"""On the squared weights of the regression, to choose from: scikit-learn's C from 0.01 to 100."""
_BATCH_TOKENS = 1024

MeanStates = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]
"""Rows of token ids -> the mean over each row's encoder states, (N, d_model)."""


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
            self._tokenizer, self._mean_states = _compiled(model, threads or default_threads())
        else:
            self._tokenizer, self._mean_states = _in_torch(model, device)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of which texts need one; empty where the encoder takes none."""
        return self._tokenizer.languages

    def fit(self, train: LabelledTexts, *, language: str) -> Ask:
        """A classifier from training rows in one language."""
        labels = [] if train.kind == "multiple_choice" else [*train.counts]
        gold_N = torch.tensor([labels.index(label) if labels else int(label) for label in train.labels])
        vectors_VD = torch.cat(self._vectors(train.inputs, language))
        scale = Standardizer.fit(vectors_VD)  # differences and products are smaller than means
        if train.kind == "sequence":
            scale = Standardizer(scale.mean, torch.ones_like(scale.mean))
        rows = len(labels) or 1
        penalty = choose_penalty(vectors_VD, gold_N, rows, scale=scale, penalties=_PENALTIES)
        head = logistic_regression(vectors_VD, gold_N, rows, scale=scale, penalty=penalty)

        def ask(texts: Sequence[Input], language: str) -> list[str]:
            vectors = self._vectors(texts, language)
            with torch.no_grad():
                logits_VC = head(torch.cat(vectors))
            # a row of labels, or a column of choices
            found = [int(logits.argmax()) for logits in torch.split(logits_VC, [len(own_VD) for own_VD in vectors])]
            return [labels[index] if labels else str(index) for index in found]

        return ask

    def _vectors(self, texts: Sequence[Input], language: str) -> list[torch.Tensor]:
        """What the regression sees (V, D) of each text or pair, one row, or of choices, one each."""
        parts = [parts_of(item) for item in texts]
        means_PD = self._read([part for own in parts for part in own], language)
        means = torch.split(means_PD, [len(own) for own in parts])
        return [own_PD if len(own_PD) == 1 else _compared(own_PD[:1], own_PD[1:]) for own_PD in means]

    def _read(self, texts: Sequence[str], language: str) -> torch.Tensor:
        """Mean states (N, d_model) of texts in one language."""
        encoded = self._tokenizer.encode(texts, language=language if self.languages else None)
        lengths = [len(text.ids) for text in encoded]
        order = plan_batches(lengths, max_tokens=max(_BATCH_TOKENS, *lengths))
        rows = np.concatenate([self._mean_states([encoded[index].ids for index in batch]) for batch in order])
        vectors_ND = np.empty_like(rows)
        vectors_ND[[index for batch in order for index in batch]] = rows
        return torch.from_numpy(vectors_ND)


def _compared(first_1D: torch.Tensor, others_VD: torch.Tensor) -> torch.Tensor:
    """The module's comparison of a text with others: (1, D), (V, D) -> (V, 4 D)."""
    firsts_VD = first_1D.expand_as(others_VD)
    return torch.cat([firsts_VD, others_VD, (firsts_VD - others_VD).abs(), firsts_VD * others_VD], dim=1)


def _compiled(bundle: Bundle, threads: int) -> tuple[Tokenizer, MeanStates]:
    from mtllm_edge.encoders.ctranslate2 import CTranslate2Encoder

    encoder = CTranslate2Encoder(bundle.path / ENCODER_NAME, bundle.manifest.encoder, threads=threads)
    return load_tokenizer(bundle), lambda batch: np.stack([states.mean(axis=0) for states in encoder.encode(batch)])


def _in_torch(folder: Path, device: str) -> tuple[Tokenizer, MeanStates]:
    encoder, tokenizer = checkpoint.load_framed_encoder(folder, StackConfig.load(folder))
    module = encoder.module.to(device)

    def mean_states(batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        ids_NL, mask_NL = pad_right(batch, device=device)
        with torch.no_grad():
            states_NLD = module(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        means_ND: NDArray[np.float32] = masked_mean(states_NLD, mask_NL).cpu().numpy()
        return means_ND

    return tokenizer, mean_states
