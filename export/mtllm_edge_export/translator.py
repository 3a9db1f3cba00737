"""Export a trained translator to CTranslate2.

A BERT encoder is converted as a BART encoder: the same post-norm layers, learned positions, no scaling of the
embeddings. BERT's token type embedding is the same for every token, so it is added to the positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
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
from mtllm_edge_export.encoders.ctranslate2 import vocabulary_names  # noqa: E402

if TYPE_CHECKING:
    from mtllm_edge_export.encoders.spec import EncoderQuantization

_TOLERANCE = 2e-3
"""Largest relative difference between the states of the two encoders. Their layer norms differ by an epsilon of 1e-5,
which causes 4e-4 with the small embeddings of the reference translator."""


def export_translator(
    source: Path, out: Path, *, quantization: EncoderQuantization, max_tokens: int = 256, force: bool = False
) -> TranslatorManifest:
    """Export a translator for `mtllm_edge.translator.Translator`.

    Args:
        source: Folder written by `train_translator`.
        out: Folder to write.
        quantization: Type of the stored weights.
        max_tokens: Longest text in tokens, special tokens included.
        force: Replace an existing translator.

    Raises:
        ModelError: The translator is damaged, or its encoder cannot be converted to a BART encoder.
    """
    model, config = load_translator(source)
    specification = _specification(model)
    specification.optimize(quantization=None if quantization == "float32" else quantization)
    manifest = TranslatorManifest(
        name=config.name,
        quantization=quantization,
        max_tokens=min(max_tokens, model.encoder.config.max_position_embeddings),
        max_target_tokens=MAX_TARGET_TOKENS - 1,
        prefix_tokens=model.loaded.prefix_tokens,
        suffix_tokens=model.loaded.suffix_tokens,
        sources=config.sources,
    )
    with atomic_folder(out, force=force, marker=MANIFEST_NAME) as folder:
        specification.save(str(folder))
        (folder / "tokenizer.json").write_text(model.loaded.tokenizer_json, encoding="utf-8")
        (folder / "target_tokenizer.json").write_text(model.target_tokenizer_json, encoding="utf-8")
        (folder / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def _specification(model: Any) -> transformer_spec.TransformerSpec:
    """Return the validated CTranslate2 specification of a translator."""
    bert, decoder = model.encoder, model.decoder
    encoder = bart_encoder(bert, bert.embeddings.word_embeddings.table())
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
    special_tokens = unknown, end = "<unk>", "</s>"
    specification.config.unk_token = unknown
    specification.config.bos_token = specification.config.eos_token = end
    specification.config.decoder_start_token = end
    source_rows, target_rows = len(encoder.embed_tokens.weight), decoder.config.vocab_size
    specification.register_source_vocabulary(vocabulary_names(model.loaded.tokenizer_json, source_rows, special_tokens))
    specification.register_target_vocabulary(vocabulary_names(model.target_tokenizer_json, target_rows, special_tokens))
    specification.validate()
    return specification


def bart_encoder(bert: Any, table_VD: torch.Tensor) -> Any:
    """Convert a `BertModel`, with these word embeddings, to the equivalent `BartEncoder` of transformers.

    Raises:
        ModelError: The two differ on a test input, for example because the BERT has other position embeddings.
    """
    bert_config = bert.config
    config = transformers.BartConfig(
        vocab_size=len(table_VD),
        d_model=bert_config.hidden_size,
        encoder_layers=bert_config.num_hidden_layers,
        encoder_attention_heads=bert_config.num_attention_heads,
        encoder_ffn_dim=bert_config.intermediate_size,
        decoder_layers=0,
        activation_function=bert_config.hidden_act,
        max_position_embeddings=bert_config.max_position_embeddings,
        scale_embedding=False,
        pad_token_id=bert_config.pad_token_id,
    )
    encoder: Any = transformers.BartModel(config).encoder.eval()
    state = encoder.state_dict()
    state["embed_tokens.weight"] = table_VD
    positions_PD = bert.embeddings.position_embeddings.weight + bert.embeddings.token_type_embeddings.weight[0]
    offset = len(state["embed_positions.weight"]) - len(positions_PD)  # BART reserves two rows
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
        expected, actual = (module.eval()(input_ids=ids_NL).last_hidden_state for module in (bert, encoder))
    difference = ((expected - actual).norm() / expected.norm()).item()
    if not difference < _TOLERANCE:
        raise ModelError(
            f"as a BART encoder, the encoder's states differ by {difference:.1e} of their length; "
            "use a BERT with the default settings"
        )
    return encoder
