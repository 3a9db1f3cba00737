"""The MT-LLM in torch: encoder -> bridge -> LLM body -> masked mean -> head (Schmidt et al. 2024, arXiv 2406.12739).

No prompt, no BOS, no extra tokens: the LLM reads one input per encoder state, or per group of them where the bridge is
strided, under the mask that the bridge makes of the encoder's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

from mtllm_edge.errors import ModelError
from mtllm_edge.inputs import Input, parts_of, vector_count
from mtllm_edge.tokenization.encoding import Encoding, Spans, downsample_spans
from mtllm_edge.tokenization.tokenizer import Tokenizer
from mtllm_edge_train.checkpoints.config import (
    LoraConfig,
)
from mtllm_edge_train.checkpoints.llm_weights import LlmWeights, open_llm_weights
from mtllm_edge_train.checkpoints.published import is_published
from mtllm_edge_train.library_errors import one_line_error
from mtllm_edge_train.models.bridge import Bridge
from mtllm_edge_train.models.llm_tokenization import tokenize
from mtllm_edge_train.models.nf4 import pack_nf4
from mtllm_edge_train.models.pretrained import pretrained_model, pretrained_tokenizer
from mtllm_edge_train.training import settings

ENGLISH = ("eng_Latn", "en_XX", "en")
"""Its codes in NLLB, mBART and M2M100."""
_BATCH = 32


def masked_mean(hidden_NLD: Tensor, mask_NL: Tensor) -> Tensor:
    """Mean over the unmasked positions, in float32: (N, L, D), (N, L) -> (N, D)."""
    weights = mask_NL[..., None].float()
    return (hidden_NLD.float() * weights).sum(1) / weights.sum(1)


def span_means(hidden_NLD: Tensor, mask_NL: Tensor, spans: Sequence[Spans] | None) -> Tensor:
    """Means (vectors, D) over the spans of each text, or over the whole of a text that has none; text after text."""
    if not any(spans or ()):
        return masked_mean(hidden_NLD, mask_NL)
    whole = ((0, mask_NL.shape[1]),)
    places = [(text, span) for text, own in enumerate(spans or ()) for span in own or whole]
    texts_V = torch.tensor([text for text, _ in places], device=mask_NL.device)
    bounds_V2 = torch.tensor([span for _, span in places], device=mask_NL.device)
    place_L = torch.arange(mask_NL.shape[1], device=mask_NL.device)
    inside_VL = (place_L >= bounds_V2[:, :1]) & (place_L < bounds_V2[:, 1:])
    return masked_mean(hidden_NLD[texts_V], mask_NL[texts_V] * inside_VL)


class LlmBody(nn.Module):
    """A decoder LLM without vocabulary head, read as an encoder: mean over its final-normed states.

    LoRA, where it is given, covers all linear layers and can be switched off: the LLM's own tokens with LoRA off are
    the teacher of general adaptation, the stack with LoRA on is the student, in one set of weights.
    """

    def __init__(self, model: nn.Module, *, bidirectional: bool, lora: LoraConfig | None) -> None:
        """Wrap a transformers decoder (``LlamaModel`` ...).

        Args:
            model: The body; its weights are frozen in place.
            bidirectional: Whether a token sees the tokens after it.
            lora: Low-rank adapters to add, initialised to no change; None adds none.
        """
        super().__init__()
        model.requires_grad_(False)
        self.bidirectional = bidirectional
        self.model: Any = model
        if lora is not None:
            adapters = peft.LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", bias="none"
            )
            self.model = peft.get_peft_model(model, adapters)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only each layer's input for the backward pass, and compute the rest again there (Chen et al. 2016).

        Takes a fraction of the memory and about a third more time; the gradients are the same. Off outside training.
        """
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def width(self) -> int:
        """Width of inputs and pooled vectors."""
        return int(self.model.config.hidden_size)

    def forward(
        self,
        mask_NL: Tensor,
        *,
        ids_NL: Tensor | None = None,
        inputs_NLD: Tensor | None = None,
        spans: Sequence[Spans] | None = None,
    ) -> Tensor:
        """Pooled vectors (N, D) of the LLM's own tokens, or of inputs made by the bridge; see `span_means`."""
        mask = mask_NL
        if self.bidirectional:
            dtype = torch.float32 if inputs_NLD is None else inputs_NLD.dtype
            mask = torch.zeros(mask_NL.shape, dtype=dtype, device=mask_NL.device)
            mask = mask.masked_fill(mask_NL == 0, torch.finfo(dtype).min)[:, None, None, :]
            mask = mask.expand(-1, 1, mask_NL.shape[1], -1)
        output = self.model(input_ids=ids_NL, inputs_embeds=inputs_NLD, attention_mask=mask, use_cache=False)
        return span_means(output.last_hidden_state, mask_NL, spans)

    def embed(self, tokenizer: Any, texts: Sequence[Input], *, max_tokens: int) -> Tensor:
        """Pooled vectors of texts in the LLM's own tokens: one of a text or a pair, of choices one each."""
        encoded = tokenize(tokenizer, texts, max_tokens=max_tokens)
        ids_NL, mask_NL = pad_right(encoded, device=str(next(self.parameters()).device))
        pooled: Tensor = self(mask_NL, ids_NL=ids_NL, spans=[row.choice_spans for row in encoded])
        return pooled

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """The plain LLM: adapters off and dropout off."""
        training = self.training
        self.eval()
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self.train(training)

    def lora_state(self) -> dict[str, Tensor]:
        """The adapters' weights under the names of the checkpoint format."""
        return {
            name.replace("base_model.model.", "").replace(".default.weight", ""): parameter.detach()
            for name, parameter in self.model.named_parameters()
            if ".lora_" in name
        }

    def load_lora_state(self, state: dict[str, Any]) -> None:
        """Copy adapter weights in.

        Raises:
            ModelError: The names or shapes are not this body's.
        """
        own = self.lora_state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise ModelError(f"the adapter does not fit this LLM: {len(odd)} tensors differ, the first is {odd[0]}")
        for name, parameter in own.items():
            value = torch.as_tensor(state[name])
            if value.shape != parameter.shape:
                found, expected = tuple(value.shape), tuple(parameter.shape)
                raise ModelError(f"the adapter's {name} has shape {found}, this LLM needs {expected}")
            parameter.copy_(value)


class Stack(nn.Module):
    """The whole MT-LLM."""

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, llm: LlmBody, *, d_encoder: int, stride: int) -> None:
        """Put an encoder under an LLM body with a fresh bridge."""
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.bridge = Bridge(d_encoder, llm.width, stride=stride)
        self.llm = llm
        self.heads = nn.ModuleDict()

    @property
    def encoder_learns(self) -> bool:
        """Whether any of the encoder's parameters takes gradients."""
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def encode(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Encoder states (N, L, d_encoder), with gradients where the encoder learns."""
        hidden: Tensor = self.encoder(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        return hidden

    def pool(self, inputs_NGD: Tensor, mask_NG: Tensor, spans: Sequence[Spans] | None = None) -> Tensor:
        """Pooled vectors (N, d_llm) of LLM inputs and mask made by the bridge, of spans in these; see `span_means`."""
        pooled: Tensor = self.llm(mask_NG, inputs_NLD=inputs_NGD, spans=spans)
        return pooled

    def forward(self, ids_NL: Tensor, mask_NL: Tensor, spans: Sequence[Spans] | None = None) -> Tensor:
        """Pooled vectors (N, d_llm) of encoder tokens, of spans in these; see `span_means`."""
        inputs_NGD, mask_NG = self.bridge(self.encode(ids_NL, mask_NL), mask_NL)
        return self.pool(inputs_NGD, mask_NG, spans and [downsample_spans(own, self.bridge.stride) for own in spans])

    def embed(self, encoded: Sequence[Encoding]) -> Tensor:
        """Pooled vectors (V, d_llm) of what the tokenizer returned: one of a text or a pair, of choices one each."""
        ids_NL, mask_NL = pad_right(encoded, device=str(next(self.llm.parameters()).device))
        pooled: Tensor = self(ids_NL, mask_NL, [row.choice_spans for row in encoded])
        return pooled


def pool_in_batches(texts: Sequence[Input], pool: Callable[[list[Input]], Tensor]) -> list[Tensor]:
    """Vectors (V, D) of each of many texts, in their order: one row, or of choices one each.

    Texts of similar length are pooled together, without gradients.
    """
    by_length = sorted(range(len(texts)), key=lambda i: sum(map(len, parts_of(texts[i]))))
    pooled: dict[int, Tensor] = {}
    with torch.no_grad():
        for start in range(0, len(texts), _BATCH):
            places = by_length[start : start + _BATCH]
            batch = [texts[i] for i in places]
            pooled_VD = pool(batch).float()
            pooled |= zip(places, torch.split(pooled_VD, [vector_count(item) for item in batch]), strict=True)
    return [pooled[i] for i in range(len(texts))]


def encode_english(tokenizer: Tokenizer, texts: Sequence[Input]) -> list[Encoding]:
    """Tokenize training text, which is English, for any encoder.

    Raises:
        ModelError: The encoder must know the language, and has no token for English.
    """
    code = next((code for code in ENGLISH if code in tokenizer.languages), None)
    if tokenizer.needs_language and code is None:
        raise ModelError(f"the encoder has no token {ENGLISH[0]}, but training text is English; choose another encoder")
    return tokenizer.encode(texts, language=code if tokenizer.needs_language else None)


def pad_right(encoded: Sequence[Encoding] | Sequence[Sequence[int]], *, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows of ids to a right-padded batch: ids (N, L) with 0 in the padding, mask (N, L) of ones and zeros."""
    rows = [torch.tensor(row.ids if isinstance(row, Encoding) else list(row)) for row in encoded]
    ids_NL = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths_N = torch.tensor([len(row) for row in rows])
    mask_NL = (torch.arange(ids_NL.shape[1])[None] < lengths_N[:, None]).long()
    return ids_NL.to(device), mask_NL.to(device)


def load_llm_body(source: str, layers: int | None, *, dtype: torch.dtype = torch.float32, nf4: bool = False) -> Any:
    """The body of an LLM: its first layers and its final norm.

    Args:
        source: GGUF file (Llama architecture), local folder or hub id.
        layers: How many layers to keep; None keeps all.
        dtype: Type of the weights.
        nf4: Pack the linear layers' weights in NF4 when the body moves to CUDA.

    Returns:
        A transformers decoder in eval mode.

    Raises:
        ModelError: Nothing loadable there, or fewer layers than asked for.
    """
    with one_line_error(
        f"{source} cannot be loaded as an LLM", "name a folder, GGUF file or hub id, or get the model again"
    ):
        if Path(source).is_file() or is_published(Path(source)):
            model = _from_weights(open_llm_weights(source), source, layers)
        else:
            model = pretrained_model(transformers.AutoModel, source, dtype=dtype)
            check_layers(layers, len(model.layers), source)
            model.layers = model.layers[:layers]
            model.config.num_hidden_layers = len(model.layers)
            if getattr(model.config, "attn_logit_softcapping", None):  # Gemma 2's, which torch's own attention lacks
                model.set_attn_implementation("eager")
    model.to(dtype).eval()
    if nf4:
        pack_nf4(model)
    return model


def check_layers(layers: int | None, available: int, source: str) -> int:
    """Number of layers to keep, checked against what there is."""
    if layers is not None and not 1 <= layers <= available:
        raise ModelError(f"{source} has {available} layers, {layers} were asked for; choose 1 to {available}")
    return available if layers is None else layers


def _from_weights(weights: LlmWeights, source: str, layers: int | None) -> Any:
    keep = check_layers(layers, weights.config["num_hidden_layers"], source)
    settings = {**weights.config, "num_hidden_layers": keep}
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    for name, parameter in model.state_dict().items():
        weight = weights.tensor(name)
        if weight.shape != parameter.shape:
            found, expected = weight.shape, tuple(parameter.shape)
            raise ModelError(f"{source}: {name} has shape {found}, expected {expected}; get the model again")
        parameter.copy_(torch.from_numpy(weight.copy()))
    return model


def load_llm_tokenizer(source: str) -> Any:
    """The LLM's own tokenizer (the teacher reads English with it), padding on the right.

    Raises:
        ModelError: The GGUF file, folder or hub id holds no readable tokenizer.
    """
    path = Path(source)
    with one_line_error(f"{source} has no readable tokenizer", "get the LLM again, with its tokenizer"):
        if path.is_file():
            tokenizer = pretrained_tokenizer(str(path.parent), gguf_file=path.name)
        else:
            tokenizer = pretrained_tokenizer(source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def embed_texts(
    llm: LlmBody, tokenizer: Any, texts: Sequence[Input], *, max_tokens: int, settings: settings.LoopSettings
) -> list[Tensor]:
    """Pooled vectors (V, D) of each text in the LLM's own tokens, as a teacher says them: in eval mode."""
    llm.eval()
    with settings.autocast():
        return pool_in_batches(texts, lambda batch: llm.embed(tokenizer, batch, max_tokens=max_tokens))
