"""The translation encoder as a CTranslate2 model, encoder only.

CTranslate2 registers one loader per transformers configuration class. The loader of the class converts the whole model,
and only the encoder's part of the specification is kept.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import tokenizers

from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.errors import ModelError
from mtllm_edge.tokenization.tokenizer import LANGUAGE_PLACEHOLDER

configure_openmp()
from ctranslate2.converters import transformers as converters  # noqa: E402 (see mtllm_edge.backends.encoders.ctranslate2)
from ctranslate2.specs import transformer_spec  # noqa: E402

if TYPE_CHECKING:
    from mtllm_edge_export.encoders.spec import EncoderQuantization
    from mtllm_edge_train.models.encoder import LoadedEncoder


def write_encoder(encoder: LoadedEncoder, folder: Path, quantization: EncoderQuantization) -> None:
    """Write a CTranslate2 model folder that maps token ids to the encoder's last hidden states.

    Raises:
        ModelError: CTranslate2 has no loader for this family, or the loader fails.
    """
    specification = _encoder_specification(encoder)
    config = specification.config
    _set_special_tokens(config, encoder)
    special_tokens = (config.unk_token, config.bos_token, config.eos_token)
    rows = specification.get_vocabulary_size()
    specification.register_vocabulary(vocabulary_names(encoder.tokenizer_json, rows, special_tokens))
    epsilon = getattr(encoder.full_model.config, "layer_norm_eps", None)  # BERT's differs from CTranslate2's default
    if epsilon is not None:
        config.layer_norm_epsilon = epsilon
    specification.validate()
    specification.optimize(quantization=None if quantization == "float32" else quantization)
    folder.mkdir()
    specification.save(str(folder))


def vocabulary_names(tokenizer_json: str, rows: int, special_tokens: Sequence[str]) -> list[str]:
    """Return a name for each row of the embeddings.

    The runtime passes ids, so names are plain numbers, except the special tokens that CTranslate2 looks up.
    """
    names = [str(row) for row in range(rows)]
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    for token in special_tokens:
        row = tokenizer.token_to_id(token)
        if row is not None and row < rows:  # Marian's loader drops the last row, its padding
            names[row] = token
    return names


def _encoder_specification(encoder: LoadedEncoder) -> Any:
    config_class = type(encoder.full_model.config).__name__
    loader = converters._MODEL_LOADERS.get(config_class)
    if loader is None:
        raise ModelError(
            f"CTranslate2 cannot convert {config_class} (family {encoder.family!r}); "
            "train the stack on a BERT, XLM-R, M2M100, NLLB, BART, mBART or Marian encoder"
        )
    model = copy.deepcopy(encoder.full_model)  # loaders change the configuration
    _restore_attributes(model)
    try:
        specification = loader.get_model_spec(_loader_input(model, loader))
    except (AssertionError, AttributeError, KeyError) as error:
        raise ModelError(
            f"CTranslate2's loader for {config_class} cannot convert the encoder "
            f"({type(error).__name__}: {error}); try another release of ctranslate2 or another encoder"
        ) from None
    return transformer_spec.TransformerEncoderModelSpec(specification.encoder, pooling_layer=False)


def _loader_input(model: Any, loader: Any) -> Any:
    """Return the model in the form that the loader reads: for XLM-R, the classifier that contains the encoder."""
    if loader.architecture_name == "XLMRobertaForSequenceClassification":
        return SimpleNamespace(config=model.config, roberta=model)
    return model


def _restore_attributes(model: Any) -> None:
    """Add the attributes that CTranslate2's loaders (4.8) read and transformers 5 or the stack removed."""
    import torch

    if not hasattr(model.config, "position_embedding_type"):
        # transformers 5 removed the option; this is the only remaining scheme.
        model.config.position_embedding_type = "absolute"
    if model.config.is_encoder_decoder and not hasattr(model.config, "normalize_before"):
        # transformers 5 removed it for BART and mBART; pre-norm encoders have a final norm.
        model.config.normalize_before = hasattr(model.get_encoder(), "layer_norm")
    if getattr(model, "pooler", ...) is None:
        # The BERT loader reads the pooler unconditionally; its part of the specification is dropped.
        model.pooler = torch.nn.Module()
        model.pooler.dense = torch.nn.Linear(1, 1)


def _set_special_tokens(config: Any, encoder: LoadedEncoder) -> None:
    config.unk_token = _unknown_token(encoder.tokenizer_json) or config.unk_token
    before = [token for token in encoder.prefix_tokens if LANGUAGE_PLACEHOLDER not in token]
    after = [token for token in encoder.suffix_tokens if LANGUAGE_PLACEHOLDER not in token]
    config.bos_token = before[0] if before else config.bos_token
    config.eos_token = after[-1] if after else config.eos_token


def _unknown_token(tokenizer_json: str) -> str | None:
    """Return the unknown token; Unigram models store its index, others its text."""
    model = json.loads(tokenizer_json)["model"]
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    unknown: str | None = model.get("unk_token")
    return unknown
