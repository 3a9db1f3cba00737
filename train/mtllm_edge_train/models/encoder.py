"""Translation encoders of transformers, with their special tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray

from mtllm_edge.errors import ModelError
from mtllm_edge.tokenization.tokenizer import LANGUAGE_PLACEHOLDER
from mtllm_edge_train.library_errors import one_line_error
from mtllm_edge_train.models.pretrained import pretrained_model, pretrained_tokenizer
from mtllm_edge_train.models.tokenizer_conversion import is_sentencepiece, tokenizer_json

_LANGUAGE_TOKENS = {
    LANGUAGE_PLACEHOLDER: re.compile(r"([a-z]{3}_[A-Z][a-z]{3}|[a-z]{2}_[A-Z]{2})"),
    f"__{LANGUAGE_PLACEHOLDER}__": re.compile(r"__([a-z]{2,3})__"),
}
"""Placeholder -> pattern of its language tokens, the code as a group: of NLLB and mBART, and of M2M100."""


@dataclass(frozen=True)
class LoadedEncoder:
    """A frozen encoder with the properties that the stack and the exporters require."""

    family: str
    """Model type in transformers: ``bert``, ``m2m_100`` ..."""
    module: torch.nn.Module
    """Maps ids (N, L) and mask (N, L) to ``last_hidden_state`` (N, L, d_model)."""
    full_model: Any
    """The whole transformers model that `module` is part of."""
    d_model: int
    max_positions: int
    """Maximum input length of the architecture in tokens."""
    tokenizer_json: str
    prefix_tokens: tuple[str, ...]
    suffix_tokens: tuple[str, ...]
    languages: tuple[str, ...]
    """Codes of the language tokens in the vocabulary, sorted; empty for an encoder without language tokens."""

    @property
    def word_embeddings(self) -> NDArray[np.float32]:
        """Word embeddings (vocabulary, d_model)."""
        table_VD: NDArray[np.float32] = self.full_model.get_input_embeddings().weight.detach().numpy()
        return table_VD

    def save(self, folder: Path) -> None:
        """Write the whole model and the tokenizer as a transformers folder."""
        self.full_model.save_pretrained(folder)
        folder.joinpath("tokenizer.json").write_text(self.tokenizer_json, encoding="utf-8")


def load_encoder(source: str) -> LoadedEncoder:
    """Load an encoder, or the encoder of an encoder-decoder, from a folder or hub id, in float32.

    Raises:
        ModelError: The model or the tokenizer is missing, damaged or incomplete.
    """
    if Path(source).is_file():
        raise ModelError(f"{source} is a file; name the encoder's folder or hub id")
    with one_line_error(
        f"{source} cannot be loaded as an encoder", "name a model folder or hub id, or get the model again"
    ):
        config = transformers.AutoConfig.from_pretrained(source)
        d_model, position_rows = config.hidden_size, config.max_position_embeddings
        if config.is_encoder_decoder:
            full_model = pretrained_model(transformers.AutoModelForSeq2SeqLM, source, dtype=torch.float32)
            module = full_model.get_encoder()
        else:
            full_model = module = pretrained_model(
                transformers.AutoModel, source, dtype=torch.float32, add_pooling_layer=False
            )
    full_model.eval().requires_grad_(False)
    with one_line_error(f"{source} has no readable tokenizer", "get the model again, with its tokenizer.json"):
        file = _tokenizer_json(source)
        prefix, suffix, languages = find_special_tokens(file)
    return LoadedEncoder(
        family=config.model_type,
        module=module,
        full_model=full_model,
        d_model=d_model,
        max_positions=position_rows - _padding_positions(module),
        tokenizer_json=file,
        prefix_tokens=prefix,
        suffix_tokens=suffix,
        languages=languages,
    )


def find_special_tokens(tokenizer_json: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the special tokens before and after a text, and the language codes in the vocabulary.

    A language token becomes the placeholder ``{language}`` (for ``eng_Latn`` in NLLB, ``en_XX`` in mBART) or
    ``__{language}__`` (for ``__en__`` in M2M100).
    """
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    encoding = tokenizer.encode("a")
    specials = encoding.special_tokens_mask
    start = specials.index(0) if 0 in specials else len(specials)
    end = len(specials) - specials[::-1].index(0) if 0 in specials else len(specials)
    tokens = [_placeholder(token) for token in encoding.tokens]
    prefix, suffix = tuple(tokens[:start]), tuple(tokens[end:])
    pattern = next((_LANGUAGE_TOKENS[token] for token in prefix + suffix if token in _LANGUAGE_TOKENS), None)
    if pattern is None:
        return prefix, suffix, ()
    matches = (pattern.fullmatch(token) for token in tokenizer.get_vocab())
    return prefix, suffix, tuple(sorted(match[1] for match in matches if match))


def _placeholder(token: str) -> str:
    return next((name for name, pattern in _LANGUAGE_TOKENS.items() if pattern.fullmatch(token)), token)


def _padding_positions(module: Any) -> int:
    """Number of unused first rows of the position embeddings: XLM-R counts positions from its padding index."""
    table = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _tokenizer_json(source: str) -> str:
    local = Path(source) / "tokenizer.json"
    if local.is_file():
        return local.read_text(encoding="utf-8")
    tokenizer = pretrained_tokenizer(source)
    if is_sentencepiece(tokenizer):
        return tokenizer_json(tokenizer)
    return str(tokenizer.backend_tokenizer.to_str())
