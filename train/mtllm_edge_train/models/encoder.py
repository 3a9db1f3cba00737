"""Load a translation encoder from transformers, with the frame of special tokens that it was trained on."""

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
from mtllm_edge_train.models.tokenizer_conversion import has_pieces, tokenizer_json

_LANGUAGE_TOKENS = {
    LANGUAGE_PLACEHOLDER: re.compile(r"([a-z]{3}_[A-Z][a-z]{3}|[a-z]{2}_[A-Z]{2})"),
    f"__{LANGUAGE_PLACEHOLDER}__": re.compile(r"__([a-z]{2,3})__"),
}
"""Frame token -> the tokens that it stands for, the code in them as a group: NLLB's and mBART's, M2M100's."""


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder, frozen until told otherwise, and everything that the stack and the exporters need to know of it."""

    family: str
    """transformers' model type: ``bert``, ``m2m_100`` ..."""
    module: torch.nn.Module
    """Maps ids (N, L) and mask (N, L) to ``last_hidden_state`` (N, L, d_model)."""
    full_model: Any
    """The whole transformers model that `module` is part of."""
    d_model: int
    max_positions: int
    """Longest input in tokens that the architecture allows."""
    tokenizer_json: str
    prefix_tokens: tuple[str, ...]
    suffix_tokens: tuple[str, ...]
    languages: tuple[str, ...]
    """Codes of the vocabulary's language tokens, sorted; empty where the frame holds none."""

    @property
    def word_embeddings(self) -> NDArray[np.float32]:
        """The table of word embeddings: (vocabulary, d_model)."""
        table_VD: NDArray[np.float32] = self.full_model.get_input_embeddings().weight.detach().numpy()
        return table_VD

    def save(self, folder: Path) -> None:
        """Write a transformers folder that `load_encoder` reads, with the whole model and the tokenizer."""
        self.full_model.save_pretrained(folder)
        folder.joinpath("tokenizer.json").write_text(self.tokenizer_json, encoding="utf-8")


def load_encoder(source: str) -> LoadedEncoder:
    """Load an encoder, or the encoder of an encoder-decoder, in float32.

    Args:
        source: Local folder or hub id.

    Raises:
        ModelError: Nothing loadable there, or a model or tokenizer that is damaged or incomplete.
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
        max_positions=position_rows - _rows_of_padding(module),
        tokenizer_json=file,
        prefix_tokens=prefix,
        suffix_tokens=suffix,
        languages=languages,
    )


def find_special_tokens(tokenizer_json: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Read off which special tokens the tokenizer puts around a text.

    A language code among them becomes ``{language}`` (``eng_Latn`` of NLLB, ``en_XX`` of mBART) or ``__{language}__``
    (``__en__`` of M2M100), and all language codes of the vocabulary are listed.

    Returns:
        Tokens before the text, tokens after it, language codes.
    """
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    encoding = tokenizer.encode("a")
    specials = encoding.special_tokens_mask
    start = specials.index(0) if 0 in specials else len(specials)
    end = len(specials) - specials[::-1].index(0) if 0 in specials else len(specials)
    frame = [_frame_token(token) for token in encoding.tokens]
    prefix, suffix = tuple(frame[:start]), tuple(frame[end:])
    pattern = next((_LANGUAGE_TOKENS[token] for token in prefix + suffix if token in _LANGUAGE_TOKENS), None)
    if pattern is None:
        return prefix, suffix, ()
    found = (pattern.fullmatch(token) for token in tokenizer.get_vocab())
    return prefix, suffix, tuple(sorted(match[1] for match in found if match))


def _frame_token(token: str) -> str:
    return next((named for named, pattern in _LANGUAGE_TOKENS.items() if pattern.fullmatch(token)), token)


def _rows_of_padding(module: Any) -> int:
    """How many rows of the table of positions no token takes: XLM-R's begin behind the one of padding."""
    table = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _tokenizer_json(source: str) -> str:
    local = Path(source) / "tokenizer.json"
    if local.is_file():
        return local.read_text(encoding="utf-8")
    tokenizer = pretrained_tokenizer(source)
    if has_pieces(tokenizer):
        return tokenizer_json(tokenizer)
    return str(tokenizer.backend_tokenizer.to_str())
