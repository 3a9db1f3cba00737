"""The translation encoder as a CTranslate2 model, encoder only.

CTranslate2 registers one loader per transformers configuration class, so one road serves every family: let the loader
describe the whole model and keep the encoder's part of the description.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import tokenizers

from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.errors import ModelError
from mtllm_edge.tokenization.tokenizer import LANGUAGE_PLACEHOLDER

configure_openmp()
from ctranslate2.converters import transformers as converters  # noqa: E402 (see mtllm_edge.backends.encoders.ctranslate2)
from ctranslate2.specs import transformer_spec  # noqa: E402

if TYPE_CHECKING:
    from mtllm_edge_train.models.encoder import LoadedEncoder

EncoderQuantization = Literal["float32", "int8"]


def write_encoder(encoder: LoadedEncoder, folder: Path, quantization: EncoderQuantization) -> None:
    """Write a CTranslate2 model folder that maps token ids to the encoder's last hidden states.

    Args:
        encoder: The loaded transformers model; it is left unchanged.
        folder: Where to write; created here.
        quantization: Type of the stored weights.

    Raises:
        ModelError: CTranslate2 has no loader for this family, or its loader refuses the model.
    """
    specification = _specification(encoder)
    rows = specification.get_vocabulary_size()
    _set_special_tokens(specification.config, encoder)
    specification.register_vocabulary(_names(encoder, specification.config, rows))
    epsilon = getattr(encoder.full_model.config, "layer_norm_eps", None)  # BERT's is not CTranslate2's default
    if epsilon is not None:
        specification.config.layer_norm_epsilon = epsilon
    specification.validate()
    specification.optimize(quantization=None if quantization == "float32" else quantization)
    folder.mkdir()
    specification.save(str(folder))


def _names(encoder: LoadedEncoder, config: Any, rows: int) -> list[str]:
    """Names of the rows: the runtime passes ids, so all but CTranslate2's own special tokens are plain numbers."""
    names = [str(row) for row in range(rows)]
    tokenizer = tokenizers.Tokenizer.from_str(encoder.tokenizer_json)
    for token in (config.unk_token, config.bos_token, config.eos_token):
        row = tokenizer.token_to_id(token)
        if row is not None and row < rows:  # Marian's loader drops the last row, its padding
            names[row] = token
    return names


def _specification(encoder: LoadedEncoder) -> Any:
    config_class = type(encoder.full_model.config).__name__
    loader = converters._MODEL_LOADERS.get(config_class)
    if loader is None:
        raise ModelError(
            f"CTranslate2 cannot convert {config_class} (family {encoder.family!r}); "
            "train the stack on a BERT, XLM-R, M2M100, NLLB, BART, mBART or Marian encoder"
        )
    model = copy.deepcopy(encoder.full_model)  # loaders write into the configuration of the model that they read
    _mend(model)
    try:
        described = loader.get_model_spec(_as_expected(model, loader))
    except (AssertionError, AttributeError, KeyError) as error:
        raise ModelError(
            f"CTranslate2's loader for {config_class} refuses the encoder "
            f"({type(error).__name__}: {error}); try another release of ctranslate2 or another encoder"
        ) from None
    return transformer_spec.TransformerEncoderModelSpec(described.encoder, pooling_layer=False)


def _as_expected(model: Any, loader: Any) -> Any:
    """What a loader looks into: of XLM-R it wants the classifier that holds the encoder."""
    if loader.architecture_name == "XLMRobertaForSequenceClassification":
        return SimpleNamespace(config=model.config, roberta=model)
    return model


def _mend(model: Any) -> None:
    """Give back to a copy what CTranslate2's loaders (4.8) expect and transformers 5 or the stack left out."""
    import torch

    if not hasattr(model.config, "position_embedding_type"):
        # transformers 5 removed the choice together with every scheme but this one.
        model.config.position_embedding_type = "absolute"
    if model.config.is_encoder_decoder and not hasattr(model.config, "normalize_before"):
        # transformers 5 no longer says it of BART and mBART; where layers begin with a norm, a last one ends them.
        model.config.normalize_before = hasattr(model.get_encoder(), "layer_norm")
    if getattr(model, "pooler", ...) is None:
        # The BERT loader reads the pooler unconditionally; its part of the description is dropped afterwards.
        model.pooler = torch.nn.Module()
        model.pooler.dense = torch.nn.Linear(1, 1)


def _set_special_tokens(config: Any, encoder: LoadedEncoder) -> None:
    config.unk_token = _unknown_token(encoder.tokenizer_json) or config.unk_token
    before = [token for token in encoder.prefix_tokens if LANGUAGE_PLACEHOLDER not in token]
    after = [token for token in encoder.suffix_tokens if LANGUAGE_PLACEHOLDER not in token]
    config.bos_token = before[0] if before else config.bos_token
    config.eos_token = after[-1] if after else config.eos_token


def _unknown_token(tokenizer_json: str) -> str | None:
    """The token for what the vocabulary lacks; Unigram models name its index, the others its text."""
    model = json.loads(tokenizer_json)["model"]
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    unknown: str | None = model.get("unk_token")
    return unknown
