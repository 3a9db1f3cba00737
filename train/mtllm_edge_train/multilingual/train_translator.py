"""Before the stages: make a translation encoder of an encoder that only ever saw some of the languages.

Encoder and decoder learn to translate into English (cross-entropy), and the encoder's mean state of a sentence learns
to be the mean state that the untouched encoder had for its English translation (MSE of standardised vectors; Reimers
and Gurevych 2020, arXiv 2004.09813). English pairs, text and translation the same, keep English where it is.
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

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import UsageError
from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.models.stack import masked_mean, pad_right
from mtllm_edge_train.multilingual.pairs import DrawnPairs, Pair, TokenPair, TranslationReader, digest
from mtllm_edge_train.multilingual.translator import (
    MAX_TARGET_TOKENS,
    Translator,
    TranslatorConfig,
    load_bert,
    load_translator,
    new_decoder,
)
from mtllm_edge_train.multilingual.vocabulary import count_pieces, trim_unigram
from mtllm_edge_train.training import loop, run_state, settings
from mtllm_edge_train.training.settings import settings_dict

_SAMPLE = 1024
"""English sentences on which the mean and deviation of the encoder's vectors are measured."""
_COUNTED = 200_000
"""English sentences from which the target vocabulary is chosen."""


def train_translator(
    pairs: Sequence[Pair],
    out: Path,
    *,
    name: str,
    encoder: str,
    new_pieces: int,
    target_pieces: int,
    decoder_layers: int,
    max_tokens: int,
    alignment: float,
    steps: int,
    settings: settings.LoopSettings,
    encoder_learning_rate: float,
    start: Path | None = None,
    sources: Sequence[WeightSource] = (),
    force: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Train a translator and save it.

    Args:
        pairs: Sentence pairs.
        out: Folder of the translator; an unfinished run of the same settings there is resumed.
        name: Its name.
        encoder: Folder or hub id of a BERT encoder.
        new_pieces: How many of the encoder's last word embeddings are trained; the others stay as they are.
        target_pieces: Size of the decoder's vocabulary.
        decoder_layers: Layers of the decoder.
        max_tokens: Pairs with more tokens on a side are left out.
        alignment: Weight of the alignment loss beside the translation loss.
        steps: Of optimisation.
        settings: Optimisation; `learning_rate` is the decoder's and the new pieces'.
        encoder_learning_rate: The encoder's own.
        start: A trained translator to go on from, instead of a new decoder; `encoder` stays the alignment's teacher.
        sources: Origins and licenses.
        force: Replace whatever is at `out`.
        log: Takes one line of text.

    Raises:
        UsageError: No pairs, or a limit that the model cannot keep.
    """
    if not pairs:
        raise UsageError("translation needs sentence pairs; give at least one file of them")
    if max_tokens > MAX_TARGET_TOKENS:
        raise UsageError(f"max_tokens is {max_tokens}, the decoder has {MAX_TARGET_TOKENS} positions; lower it")
    torch.manual_seed(settings.seed)
    teacher = load_bert(encoder)
    read: Any = teacher.module
    config = TranslatorConfig(name=name, sources=tuple(sources))
    if start is not None:
        target_json = load_translator(start)[0].target_tokenizer_json
        rows: list[int] = []
    else:
        english = list(dict.fromkeys(pair.english for pair in pairs))[:_COUNTED]
        target_json, rows = target_vocabulary(teacher.tokenizer_json, english, target_pieces)
    key = run_state.fingerprint(
        *(
            config,
            settings_dict(settings),
            encoder_learning_rate,
            new_pieces,
            decoder_layers,
            alignment,
            steps,
        ),
        *(max_tokens, teacher.word_embeddings.shape, target_json, digest(pairs), str(start)),
    )
    state = run_state.start_or_resume(out, "translation", key, force=force)
    trained = out if state is not None else start
    if trained is not None:
        model, _ = load_translator(trained, new_pieces=new_pieces)
    else:
        decoder = new_decoder(teacher, tokenizers.Tokenizer.from_str(target_json), rows, layers=decoder_layers)
        learner = dataclasses.replace(teacher, module=copy.deepcopy(teacher.module))
        model = Translator(learner, decoder, target_tokenizer_json=target_json, new_pieces=new_pieces)
    model.to(settings.device)
    read.to(settings.device, settings.frozen_dtype)
    if settings.device == "cpu":  # where the fused kernel's backward pass is the slower one on short sentences
        for module in (model.encoder, model.decoder):
            module.set_attn_implementation("eager")
    order = DrawnPairs(
        pairs,
        TranslationReader(teacher.tokenizer_json, target_json),
        lengths=TokenPair.lengths,
        max_tokens=max_tokens,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )

    def teach(batch: Sequence[TokenPair]) -> Tensor:
        ids_NL, mask_NL = pad_right([pair.english for pair in batch], device=settings.device)
        with torch.no_grad(), settings.autocast():
            return masked_mean(read(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state, mask_NL)

    scale = Standardizer.fit(torch.cat([teach(order[step]) for step in range(-(-_SAMPLE // settings.batch_size))]))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = order[step]
        ids_NL, mask_NL = pad_right([pair.source for pair in batch], device=settings.device)
        target_NT, target_mask_NT = pad_right([pair.target for pair in batch], device=settings.device)
        model.encoder.eval()  # the encoder is tuned without dropout, as it will be read
        model.decoder.train()
        with settings.autocast():
            states_NLD = model.encode(ids_NL, mask_NL)
            translated = model.translation_loss(states_NLD, mask_NL, target_NT, target_mask_NT)
        aligned, _ = distillation_loss(masked_mean(states_NLD, mask_NL), teach(batch), scale)
        figures = {"translation": translated.item(), "alignment": aligned.item()}
        return translated + alignment * aligned, figures

    new_rows = model.encoder.embeddings.word_embeddings.trained
    own = [parameter for parameter in model.encoder.parameters() if parameter is not new_rows]
    groups: list[dict[str, Any]] = [
        {"params": own, "lr": encoder_learning_rate},
        {"params": [*model.decoder.parameters(), new_rows]},
    ]
    loop.optimise(
        groups,
        loss,
        stage="translation",
        key=key,
        folder=out,
        steps=steps,
        settings=settings,
        state=state,
        save_weights=lambda folder: model.save(folder, config),
        log=log,
    )


def target_vocabulary(tokenizer_json: str, english: Sequence[str], size: int) -> tuple[str, list[int]]:
    """The pieces that English needs, as a tokenizer, and the id that each has in the tokenizer that they come from."""
    target_json, rows = trim_unigram(tokenizer_json, count_pieces(tokenizer_json, [english]), size)
    return target_json, [int(row) for row in rows]
