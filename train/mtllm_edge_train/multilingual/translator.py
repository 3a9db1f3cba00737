"""A many-to-English translation model in torch: a multilingual BERT encoder and a small BART decoder.

A BERT encoder has the architecture of a BART encoder (post-norm, learned positions), so CTranslate2 runs the pair as a
BART, and the stack uses the encoder alone. The decoder has a small vocabulary, the pieces of English text, which saves
most of the softmax. Its layers are initialized from the encoder's, its embeddings from the rows of the same pieces.

On disk::

    translation.json           `TranslatorConfig`
    encoder/                   transformers folder of the `BertModel`, with tokenizer.json
    decoder/                   transformers folder of the `BartForCausalLM`, with the tokenizer.json of the target
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import ModelError
from mtllm_edge_train.library_errors import one_line_error
from mtllm_edge_train.models.encoder import LoadedEncoder, load_encoder
from mtllm_edge_train.models.pretrained import pretrained_model

CONFIG_NAME = "translation.json"
MAX_TARGET_TOKENS = 256
"""Positions of the decoder."""
LAYER_MODULES = {
    "attention.self.query": ("self_attn.q_proj", "encoder_attn.q_proj"),
    "attention.self.key": ("self_attn.k_proj", "encoder_attn.k_proj"),
    "attention.self.value": ("self_attn.v_proj", "encoder_attn.v_proj"),
    "attention.output.dense": ("self_attn.out_proj", "encoder_attn.out_proj"),
    "attention.output.LayerNorm": ("self_attn_layer_norm", "encoder_attn_layer_norm"),
    "intermediate.dense": ("fc1",),
    "output.dense": ("fc2",),
    "output.LayerNorm": ("final_layer_norm",),
}
"""Module of a BERT layer -> modules of a BART decoder layer that are initialized from it."""


class TranslatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`translation.json`."""

    name: str
    sources: tuple[WeightSource, ...]
    """Origins and licenses of weights and training data."""


class ExtendedEmbedding(nn.Module):
    """Word embeddings with frozen rows followed by trained rows."""

    def __init__(self, table_VD: Tensor, trained: int) -> None:
        """Split a table into frozen rows and, at the end, `trained` rows."""
        super().__init__()
        self._frozen = len(table_VD) - trained
        self.frozen: Tensor
        self.register_buffer("frozen", table_VD[: self._frozen].clone(), persistent=False)
        self.trained = nn.Parameter(table_VD[self._frozen :].clone())

    def forward(self, ids_NL: Tensor) -> Tensor:
        """Embeddings (N, L, D) of token ids."""
        frozen_NLD = nn.functional.embedding(ids_NL.clamp(max=self._frozen - 1), self.frozen)
        if not len(self.trained):
            return frozen_NLD
        trained_NLD = nn.functional.embedding((ids_NL - self._frozen).clamp(min=0), self.trained)
        return torch.where((ids_NL < self._frozen)[..., None], frozen_NLD, trained_NLD)

    def table(self) -> Tensor:
        """All rows (V, D)."""
        return torch.cat([self.frozen, self.trained.detach()])


class Translator(nn.Module):
    """Encoder and decoder in training; the stack will use the encoder."""

    def __init__(self, encoder: LoadedEncoder, decoder: Any, *, target_tokenizer_json: str, new_pieces: int) -> None:
        """Combine a BERT, changed in place, and a `BartForCausalLM` of the same width.

        Of the BERT's word embeddings, the last `new_pieces` are trained.
        """
        super().__init__()
        self.loaded, self.target_tokenizer_json = encoder, target_tokenizer_json
        self.encoder: Any = encoder.module.requires_grad_(True)
        embeddings: Any = self.encoder.embeddings
        embeddings.word_embeddings = ExtendedEmbedding(embeddings.word_embeddings.weight.detach(), new_pieces)
        self.decoder: Any = decoder.requires_grad_(True)

    @property
    def start(self) -> int:
        """First token of the decoder, which is also the end token."""
        return int(self.decoder.config.decoder_start_token_id)

    def encode(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Encoder states (N, L, D), with gradients."""
        hidden: Tensor = self.encoder(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        return hidden

    def translation_loss(
        self, states_NLD: Tensor, mask_NL: Tensor, target_NT: Tensor, target_mask_NT: Tensor
    ) -> Tensor:
        """Mean cross-entropy of target tokens; targets have an end token but no start token."""
        inputs_NT = torch.cat([torch.full_like(target_NT[:, :1], self.start), target_NT[:, :-1]], dim=1)
        logits_NTV = self.decoder(
            input_ids=inputs_NT,
            attention_mask=target_mask_NT,
            encoder_hidden_states=states_NLD,
            encoder_attention_mask=mask_NL,
            use_cache=False,
        ).logits
        token_NT = target_mask_NT.bool()
        return nn.functional.cross_entropy(logits_NTV[token_NT].float(), target_NT[token_NT])

    def save(self, folder: Path, config: TranslatorConfig) -> None:
        """Write the model into an existing folder."""
        folder.joinpath(CONFIG_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.encoder.state_dict().items()}
        del state["embeddings.word_embeddings.trained"]
        state["embeddings.word_embeddings.weight"] = self.encoder.embeddings.word_embeddings.table().cpu()
        encoder, decoder = folder / "encoder", folder / "decoder"
        self.encoder.config.save_pretrained(encoder)
        save_file(state, encoder / "model.safetensors", metadata={"format": "pt"})
        encoder.joinpath("tokenizer.json").write_text(self.loaded.tokenizer_json, encoding="utf-8")
        self.decoder.save_pretrained(decoder)
        decoder.joinpath("tokenizer.json").write_text(self.target_tokenizer_json, encoding="utf-8")


def load_translator(folder: Path, *, new_pieces: int = 0) -> tuple[Translator, TranslatorConfig]:
    """Load a model written by `Translator.save`.

    Raises:
        ModelError: A part is missing, damaged, or of another shape.
    """
    try:
        config = msgspec.json.decode((folder / CONFIG_NAME).read_bytes(), type=TranslatorConfig)
        target = (folder / "decoder" / "tokenizer.json").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelError(f"{error.filename} is missing; name the folder of a trained translator") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder} holds no readable translator ({error}); train it again") from None
    encoder = load_bert(str(folder / "encoder"))
    with one_line_error(f"{folder / 'decoder'} cannot be loaded as a decoder", "train the translator again"):
        decoder = pretrained_model(transformers.BartForCausalLM, str(folder / "decoder"), dtype=torch.float32)
    return Translator(encoder, decoder, target_tokenizer_json=target, new_pieces=new_pieces), config


def load_bert(source: str) -> LoadedEncoder:
    """Load an encoder of the family ``bert``, which a BART decoder can use.

    Raises:
        ModelError: It is of another family.
    """
    encoder = load_encoder(source)
    if encoder.family != "bert":
        raise ModelError(f"{source} is of the family {encoder.family!r}; translation starts from a BERT encoder")
    return encoder


def new_decoder(encoder: LoadedEncoder, target: tokenizers.Tokenizer, rows: Sequence[int], *, layers: int) -> Any:
    """Create a BART decoder, a `BartForCausalLM` with tied output, from the weights of an encoder.

    Args:
        encoder: The BERT.
        target: Tokenizer of the target vocabulary, with the tokens ``<pad>`` and ``</s>`` (start and end token).
        rows: For each id of the target vocabulary, the encoder's id of the same piece.
        layers: Number of layers, taken at even distances from the encoder's, with the last one.
    """
    bert: Any = encoder.module
    end = target.token_to_id("</s>")
    config = transformers.BartConfig(
        vocab_size=len(rows),
        d_model=encoder.d_model,
        decoder_layers=layers,
        decoder_attention_heads=bert.config.num_attention_heads,
        decoder_ffn_dim=bert.config.intermediate_size,
        encoder_layers=0,
        activation_function=bert.config.hidden_act,
        dropout=0.1,
        max_position_embeddings=MAX_TARGET_TOKENS,
        scale_embedding=False,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=target.token_to_id("<pad>"),
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end,
        forced_eos_token_id=None,
    )
    model = transformers.BartForCausalLM(config)
    decoder = model.model.decoder
    _copy_layers(bert, decoder)
    table_VD = bert.embeddings.word_embeddings.weight.detach()
    decoder.embed_tokens.weight.data.copy_(table_VD[torch.tensor(list(rows))])
    positions_PD = bert.embeddings.position_embeddings.weight.detach()
    decoder.embed_positions.weight.data[-MAX_TARGET_TOKENS:] = positions_PD[:MAX_TARGET_TOKENS]  # the first are unused
    decoder.layernorm_embedding.load_state_dict(bert.embeddings.LayerNorm.state_dict())
    model.tie_weights()
    return model


def _copy_layers(bert: Any, decoder: Any) -> None:
    layers, indices = bert.encoder.layer, torch.linspace(0, len(bert.encoder.layer) - 1, len(decoder.layers) + 1)
    for layer, index in zip(decoder.layers, indices.round().int().tolist()[1:], strict=True):
        for source, targets in LAYER_MODULES.items():
            for target in targets:
                layer.get_submodule(target).load_state_dict(layers[index].get_submodule(source).state_dict())
