"""A trained translator as a CTranslate2 encoder-decoder.

A BERT encoder is a BART encoder: the same post-norm layers, learned positions, no scaling of the embeddings. The row
that BERT adds for the token type is the same for every token, so it goes into the positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import tokenizers
import torch
import transformers

from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.errors import ModelError
from mtllm_edge.files.atomic import atomic_folder
from mtllm_edge_train.multilingual.translator import LAYER_MODULES, MAX_TARGET_TOKENS, load_translator

configure_openmp()
from ctranslate2.converters import transformers as converters  # noqa: E402 (see mtllm_edge.backends.encoders.ctranslate2)
from ctranslate2.specs import common_spec, transformer_spec  # noqa: E402

from mtllm_edge.translator import MANIFEST_NAME, TranslatorManifest  # noqa: E402

if TYPE_CHECKING:
    from mtllm_edge_export.encoders.ctranslate2 import EncoderQuantization

_TOLERANCE = 2e-3
"""Largest difference between the states of the two encoders, as a share of the states' length; their layer norms differ
by an epsilon of 1e-5, which the shipped translator's small embeddings feel (4e-4)."""


def export_translator(
    source: Path, out: Path, *, quantization: EncoderQuantization, max_tokens: int = 256, force: bool = False
) -> TranslatorManifest:
    """Write a translator for `mtllm_edge.translator.Translator`.

    Args:
        source: Folder that `train_translator` wrote.
        out: Folder to write.
        quantization: Type of the stored weights.
        max_tokens: Longest text in tokens, the frame included.
        force: Replace an existing translator.

    Raises:
        ModelError: The translator is damaged, or its encoder cannot be written as a BART encoder.
    """
    model, config = load_translator(source)
    bert: Any = model.encoder
    encoder = bart_encoder(bert, model.encoder.embeddings.word_embeddings.table())
    decoder: Any = model.decoder
    specification = transformer_spec.TransformerSpec.from_config(
        (bert.config.num_hidden_layers, decoder.config.decoder_layers),
        bert.config.num_attention_heads,
        pre_norm=False,
        activation=common_spec.Activation.GELU,
        layernorm_embedding=True,
    )
    loader = converters.BartLoader()
    loader.set_encoder(specification.encoder, encoder)
    loader.set_decoder(specification.decoder, decoder.model.decoder)
    loader.set_linear(specification.decoder.projection, decoder.lm_head)
    unknown, end = "<unk>", "</s>"
    specification.config.unk_token = unknown
    specification.config.bos_token = specification.config.eos_token = end
    specification.config.decoder_start_token = end
    target_json = model.target_tokenizer_json
    specification.register_source_vocabulary(_names(model.loaded.tokenizer_json, len(encoder.embed_tokens.weight)))
    specification.register_target_vocabulary(_names(target_json, decoder.config.vocab_size))
    specification.validate()
    specification.optimize(quantization=None if quantization == "float32" else quantization)
    manifest = TranslatorManifest(
        name=config.name,
        quantization=quantization,
        max_tokens=min(max_tokens, bert.config.max_position_embeddings),
        max_target_tokens=MAX_TARGET_TOKENS - 1,
        prefix_tokens=model.loaded.prefix_tokens,
        suffix_tokens=model.loaded.suffix_tokens,
        sources=config.sources,
    )
    with atomic_folder(out, force=force, marker=MANIFEST_NAME) as folder:
        specification.save(str(folder))
        (folder / "tokenizer.json").write_text(model.loaded.tokenizer_json, encoding="utf-8")
        (folder / "target_tokenizer.json").write_text(target_json, encoding="utf-8")
        (folder / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def bart_encoder(bert: Any, table_VD: torch.Tensor) -> Any:
    """The BART encoder that computes what a BERT does.

    Args:
        bert: A transformers `BertModel`.
        table_VD: Its word embeddings.

    Returns:
        A transformers `BartEncoder`.

    Raises:
        ModelError: The two disagree on a probe text, as where the BERT has another kind of positions.
    """
    own = bert.config
    config = transformers.BartConfig(
        vocab_size=len(table_VD),
        d_model=own.hidden_size,
        encoder_layers=own.num_hidden_layers,
        encoder_attention_heads=own.num_attention_heads,
        encoder_ffn_dim=own.intermediate_size,
        decoder_layers=0,
        activation_function=own.hidden_act,
        max_position_embeddings=own.max_position_embeddings,
        scale_embedding=False,
        pad_token_id=own.pad_token_id,
    )
    encoder: Any = transformers.BartModel(config).encoder.eval()
    state = encoder.state_dict()
    state["embed_tokens.weight"] = table_VD
    positions_PD = bert.embeddings.position_embeddings.weight + bert.embeddings.token_type_embeddings.weight[0]
    offset = len(state["embed_positions.weight"]) - len(positions_PD)  # BART keeps two rows for itself
    state["embed_positions.weight"][offset:] = positions_PD.detach()
    for name, tensor in bert.embeddings.LayerNorm.state_dict().items():
        state[f"layernorm_embedding.{name}"] = tensor
    for number, layer in enumerate(bert.encoder.layer):
        for name, tensor in layer.state_dict().items():
            module, _, kind = name.rpartition(".")
            state[f"layers.{number}.{LAYER_MODULES[module][0]}.{kind}"] = tensor
    encoder.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True)
    ids_NL = torch.arange(min(len(table_VD), 32))[None]
    with torch.inference_mode():
        expected, found = (module.eval()(input_ids=ids_NL).last_hidden_state for module in (bert, encoder))
    difference = ((expected - found).norm() / expected.norm()).item()
    if not difference < _TOLERANCE:
        raise ModelError(
            f"the encoder's states change by {difference:.1e} of their length as a BART encoder; "
            "use a BERT with plain parts"
        )
    return encoder


def _names(tokenizer_json: str, rows: int) -> Sequence[str]:
    """Names of the rows: the runtime passes ids, so all but CTranslate2's own special tokens are plain numbers."""
    names = [str(row) for row in range(rows)]
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    for token in ("<unk>", "</s>"):
        if (row := tokenizer.token_to_id(token)) is not None:
            names[row] = token
    return names
