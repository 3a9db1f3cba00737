"""Training of a many-to-English translation model from a BERT encoder, before the stages of the stack.

Encoder and decoder are trained to translate into English (cross-entropy), and the mean encoder state of a sentence is
aligned with the mean state of the original encoder for the English translation (MSE of standardized vectors; Reimers
and Gurevych 2020, arXiv 2004.09813). English sentences paired with themselves preserve the states of English.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from mtllm_edge.errors import UsageError
from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.models.stack import masked_mean, pad_right
from mtllm_edge_train.multilingual.pairs import PairSampler, PairTokenizer, SentencePair, TokenPair, digest
from mtllm_edge_train.multilingual.translator import (
    MAX_TARGET_TOKENS,
    Translator,
    TranslatorConfig,
    load_bert,
    load_translator,
    new_decoder,
)
from mtllm_edge_train.multilingual.vocabulary import count_pieces, trim_unigram
from mtllm_edge_train.training.stage import Stage, TrainingPlan

_SAMPLE = 1024
"""English sentences for the mean and standard deviation of the original encoder's vectors."""
_VOCABULARY_SAMPLE = 200_000
"""English sentences for the choice of the target vocabulary."""


@dataclasses.dataclass(kw_only=True, eq=False)
class TranslatorTraining(Stage):
    """Training of a translation model. `settings.learning_rate` is that of the decoder and the new word embeddings."""

    kind = "translation"
    divisible = False
    pairs: Sequence[SentencePair]
    encoder: str
    """Folder or hub id of the original encoder, a BERT."""
    new_pieces: int
    """Number of the encoder's last word embeddings to train; the others stay frozen."""
    target_pieces: int
    """Size of the decoder's vocabulary."""
    decoder_layers: int
    max_tokens: int
    """Pairs with more tokens on a side are skipped."""
    alignment: float
    """Weight of the alignment loss beside the translation loss."""
    steps: int
    encoder_learning_rate: float

    def check(self) -> Sequence[object]:
        """Load the original encoder and choose the target vocabulary.

        Raises:
            UsageError: No pairs, or more tokens than the decoder has positions.
            ModelError: The encoder is damaged or of another family.
        """
        if not self.pairs:
            raise UsageError("translation needs sentence pairs; give at least one file of them")
        if self.max_tokens > MAX_TARGET_TOKENS:
            raise UsageError(
                f"max_tokens is {self.max_tokens}, the decoder has {MAX_TARGET_TOKENS} positions; lower it"
            )
        self.config = TranslatorConfig(name=self.name, sources=tuple(self.sources))
        self._original = load_bert(self.encoder)
        english = list(dict.fromkeys(pair.english for pair in self.pairs))[:_VOCABULARY_SAMPLE]
        tokenizer_json = self._original.tokenizer_json
        counts = count_pieces(tokenizer_json, [english])
        self._target_json, rows = trim_unigram(tokenizer_json, counts, self.target_pieces)
        self._target_rows = [int(row) for row in rows]
        return (
            *(self.encoder_learning_rate, self.new_pieces, self.decoder_layers, self.alignment, self.steps),
            *(self.max_tokens, self._original.word_embeddings.shape, self._target_json, digest(self.pairs)),
        )

    def build(self, checkpoint: Path | None, log: Callable[[str], None]) -> TrainingPlan:
        """Load or create the model, and measure the original encoder's vectors."""
        self._model = self._load_model(checkpoint).to(self.settings.device)
        module: Any = self._original.module
        module.to(self.settings.device, self.settings.frozen_dtype)
        if self.settings.device == "cpu":  # for short sentences the backward pass of the fused kernel is slower
            for part in (self._model.encoder, self._model.decoder):
                part.set_attn_implementation("eager")
        batches = PairSampler(
            self.pairs,
            PairTokenizer(self._original.tokenizer_json, self._target_json),
            max_tokens=self.max_tokens,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
        )
        steps = -(-_SAMPLE // self.settings.batch_size)
        self._scale = Standardizer.fit(torch.cat([self._teacher_means(batches[step]) for step in range(steps)]))
        new_rows = self._model.encoder.embeddings.word_embeddings.trained
        encoder = [parameter for parameter in self._model.encoder.parameters() if parameter is not new_rows]
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": self.encoder_learning_rate},
            {"params": [*self._model.decoder.parameters(), new_rows]},
        ]
        return TrainingPlan(groups, batches, self.steps)

    def _load_model(self, checkpoint: Path | None) -> Translator:
        if checkpoint is not None:
            return load_translator(checkpoint, new_pieces=self.new_pieces)[0]
        target = tokenizers.Tokenizer.from_str(self._target_json)
        decoder = new_decoder(self._original, target, self._target_rows, layers=self.decoder_layers)
        encoder = dataclasses.replace(self._original, module=copy.deepcopy(self._original.module))
        return Translator(encoder, decoder, target_tokenizer_json=self._target_json, new_pieces=self.new_pieces)

    def _teacher_means(self, batch: Sequence[TokenPair]) -> Tensor:
        """Mean states (N, D) of the original encoder for the English sides."""
        ids_NL, mask_NL = pad_right([pair.english for pair in batch], device=self.settings.device)
        with torch.no_grad(), self.settings.autocast():
            states_NLD = self._original.module(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
            return masked_mean(states_NLD, mask_NL)

    def loss(self, batch: Sequence[TokenPair]) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of translation and alignment loss."""
        ids_NL, mask_NL = pad_right([pair.source for pair in batch], device=self.settings.device)
        target_NT, target_mask_NT = pad_right([pair.target for pair in batch], device=self.settings.device)
        self._model.encoder.eval()  # no dropout in the encoder
        self._model.decoder.train()
        with self.settings.autocast():
            states_NLD = self._model.encode(ids_NL, mask_NL)
            translation = self._model.translation_loss(states_NLD, mask_NL, target_NT, target_mask_NT)
        alignment, _ = distillation_loss(masked_mean(states_NLD, mask_NL), self._teacher_means(batch), self._scale)
        metrics = {"translation": translation.item(), "alignment": alignment.item()}
        return translation + self.alignment * alignment, metrics

    def save(self, folder: Path) -> None:
        """Write the translation model."""
        self._model.save(folder, self.config)
