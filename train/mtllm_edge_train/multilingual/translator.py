"""A many-to-English translator in torch: a BERT encoder that reads every language, and a small BART decoder.

A BERT encoder is a BART encoder (post-norm, learned positions), so CTranslate2 runs the pair as a BART, and the encoder
alone is the one that goes under the LLM. The decoder has a vocabulary of its own, the pieces that English uses: that
saves most of the softmax. Its layers start from the encoder's, its embeddings from the rows of the same pieces.

On disk::

    translation.json           this file's `TranslatorConfig`
    encoder/                   transformers folder of the `BertModel`, with tokenizer.json: an encoder like any other
    decoder/                   transformers folder of the `BartForCausalLM`, with the target side's tokenizer.json
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
"""Longest translation that the decoder has positions for."""
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
"""Module of a BERT layer -> modules of a BART decoder layer that start from it."""


class TranslatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`translation.json`."""

    name: str
    sources: tuple[WeightSource, ...]
    """Origin and license of every weight and data set behind the translator."""


class GrownEmbedding(nn.Module):
    """A table of word embeddings whose last rows alone are trained."""

    def __init__(self, table_VD: Tensor, trained: int) -> None:
        """Split a table.

        Args:
            table_VD: All rows.
            trained: How many of the last rows are trained.
        """
        super().__init__()
        self._frozen = len(table_VD) - trained
        self.frozen: Tensor
        self.register_buffer("frozen", table_VD[: self._frozen].clone(), persistent=False)
        self.trained = nn.Parameter(table_VD[self._frozen :].clone())

    def forward(self, ids_NL: Tensor) -> Tensor:
        """Rows of ids: (N, L) -> (N, L, D)."""
        known_NLD = nn.functional.embedding(ids_NL.clamp(max=self._frozen - 1), self.frozen)
        if not len(self.trained):
            return known_NLD
        new_NLD = nn.functional.embedding((ids_NL - self._frozen).clamp(min=0), self.trained)
        return torch.where((ids_NL < self._frozen)[..., None], known_NLD, new_NLD)

    def table(self) -> Tensor:
        """All rows, (V, D)."""
        return torch.cat([self.frozen, self.trained.detach()])


class Translator(nn.Module):
    """Encoder and decoder under training; the states of the encoder are what an LLM will read later."""

    def __init__(self, encoder: LoadedEncoder, decoder: Any, *, target_tokenizer_json: str, new_pieces: int) -> None:
        """Join an encoder and a decoder.

        Args:
            encoder: A loaded BERT; its module is changed in place.
            decoder: A `BartForCausalLM` of the same width.
            target_tokenizer_json: Tokenizer of the decoder's vocabulary.
            new_pieces: How many of the last word embeddings are trained; all others stay as they are.
        """
        super().__init__()
        self.loaded, self.target_tokenizer_json = encoder, target_tokenizer_json
        self.encoder: Any = encoder.module.requires_grad_(True)
        embeddings: Any = self.encoder.embeddings
        embeddings.word_embeddings = GrownEmbedding(embeddings.word_embeddings.weight.detach(), new_pieces)
        self.decoder: Any = decoder.requires_grad_(True)

    @property
    def start(self) -> int:
        """Token that the decoder starts with, which also ends a translation."""
        return int(self.decoder.config.decoder_start_token_id)

    def encode(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """States of the encoder, (N, L, D), with gradients."""
        hidden: Tensor = self.encoder(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        return hidden

    def translation_loss(
        self, states_NLD: Tensor, mask_NL: Tensor, target_NT: Tensor, target_mask_NT: Tensor
    ) -> Tensor:
        """Mean cross-entropy of the target tokens, each with its end token but without a start token."""
        before_NT = torch.cat([torch.full_like(target_NT[:, :1], self.start), target_NT[:, :-1]], dim=1)
        logits_NTV = self.decoder(
            input_ids=before_NT,
            attention_mask=target_mask_NT,
            encoder_hidden_states=states_NLD,
            encoder_attention_mask=mask_NL,
            use_cache=False,
        ).logits
        real_NT = target_mask_NT.bool()
        return nn.functional.cross_entropy(logits_NTV[real_NT].float(), target_NT[real_NT])

    def save(self, folder: Path, config: TranslatorConfig) -> None:
        """Write the translator into an existing folder."""
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
    """Read what `Translator.save` wrote.

    Raises:
        ModelError: A part is missing, damaged, or does not fit the others.
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
    """Load an encoder that a BART decoder can be put on.

    Raises:
        ModelError: It is none of the family ``bert``.
    """
    encoder = load_encoder(source)
    if encoder.family != "bert":
        raise ModelError(f"{source} is of the family {encoder.family!r}; translation starts from a BERT encoder")
    return encoder


def new_decoder(encoder: LoadedEncoder, target: tokenizers.Tokenizer, rows: Sequence[int], *, layers: int) -> Any:
    """A decoder that starts from the encoder's weights.

    Args:
        encoder: The BERT.
        target: Tokenizer of the target vocabulary, with the tokens ``<pad>`` and ``</s>``; the latter starts and ends a
            translation.
        rows: For each id of the target vocabulary, the encoder's id of the same piece.
        layers: How many; they are taken evenly from the encoder's, the last one included.

    Returns:
        A transformers `BartForCausalLM`, its output tied to its embeddings.
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
    state = decoder.state_dict()
    table_VD = bert.embeddings.word_embeddings.weight.detach()
    state["embed_tokens.weight"] = table_VD[torch.tensor(list(rows))]
    positions_PD = bert.embeddings.position_embeddings.weight.detach()
    offset = len(state["embed_positions.weight"]) - MAX_TARGET_TOKENS  # BART keeps two rows for itself
    state["embed_positions.weight"][offset:] = positions_PD[:MAX_TARGET_TOKENS]
    for name, tensor in bert.embeddings.LayerNorm.state_dict().items():
        state[f"layernorm_embedding.{name}"] = tensor
    chosen = torch.linspace(0, len(bert.encoder.layer) - 1, layers + 1).round().int().tolist()[1:]
    for layer, source in enumerate(chosen):
        for name, tensor in bert.encoder.layer[source].state_dict().items():
            module, _, kind = name.rpartition(".")
            for place in LAYER_MODULES[module]:
                state[f"layers.{layer}.{place}.{kind}"] = tensor
    decoder.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True)
    model.tie_weights()
    return model
