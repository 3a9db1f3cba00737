"""The MT-LLM in torch: encoder -> bridge -> LLM body -> masked mean -> head (Schmidt et al. 2024, arXiv 2406.12739).

There is no prompt, BOS or other extra token: the LLM reads one input per encoder state, or per group of states if the
bridge is strided.
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
from mtllm_edge_train.checkpoints.config import LoraConfig
from mtllm_edge_train.checkpoints.llm_weights import LlmWeights, open_llm_weights
from mtllm_edge_train.checkpoints.published import is_published
from mtllm_edge_train.library_errors import one_line_error
from mtllm_edge_train.models.bridge import Bridge
from mtllm_edge_train.models.llm_tokenization import tokenize
from mtllm_edge_train.models.nf4 import pack_nf4
from mtllm_edge_train.models.pretrained import pretrained_model, pretrained_tokenizer
from mtllm_edge_train.training.settings import LoopSettings

ENGLISH = ("eng_Latn", "en_XX", "en")
"""Codes of English in NLLB, mBART and M2M100."""
_BATCH_SIZE = 32


def masked_mean(hidden_NLD: Tensor, mask_NL: Tensor) -> Tensor:
    """Return the mean over the unmasked positions in float32: (N, L, D), (N, L) -> (N, D)."""
    weights = mask_NL[..., None].float()
    return (hidden_NLD.float() * weights).sum(1) / weights.sum(1)


def span_means(hidden_NLD: Tensor, mask_NL: Tensor, spans: Sequence[Spans] | None) -> Tensor:
    """Return the mean (vectors, D) of every span, or of the whole text for a text without spans, in text order."""
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
    """A decoder LLM without vocabulary head as a text encoder: the mean over its states after the final norm.

    LoRA, if given, covers all linear layers and can be disabled. In general adaptation one set of weights is the
    teacher, on the LLM's own tokens without LoRA, and part of the student, with LoRA.
    """

    def __init__(self, model: nn.Module, *, bidirectional: bool, lora: LoraConfig | None) -> None:
        """Freeze a transformers decoder (``LlamaModel`` ...), and add `lora`, initialized to the identity."""
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
        """Keep only the layer inputs, and recompute the activations in the backward pass (Chen et al. 2016).

        This takes a fraction of the memory and about a third more time. It has no effect in eval mode.
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
        """Pool the LLM's own tokens, or inputs from the bridge, to vectors (N, D); see `span_means`."""
        mask = mask_NL
        if self.bidirectional:
            dtype = torch.float32 if inputs_NLD is None else inputs_NLD.dtype
            mask = torch.zeros(mask_NL.shape, dtype=dtype, device=mask_NL.device)
            mask = mask.masked_fill(mask_NL == 0, torch.finfo(dtype).min)[:, None, None, :]
            mask = mask.expand(-1, 1, mask_NL.shape[1], -1)
        output = self.model(input_ids=ids_NL, inputs_embeds=inputs_NLD, attention_mask=mask, use_cache=False)
        return span_means(output.last_hidden_state, mask_NL, spans)

    def embed(self, tokenizer: Any, texts: Sequence[Input], *, max_tokens: int) -> Tensor:
        """Return the vectors of texts in the LLM's own tokens: one per text or pair, and one per choice."""
        encoded = tokenize(tokenizer, texts, max_tokens=max_tokens)
        ids_NL, mask_NL = pad_right(encoded, device=str(next(self.parameters()).device))
        pooled: Tensor = self(mask_NL, ids_NL=ids_NL, spans=[row.choice_spans for row in encoded])
        return pooled

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Disable the adapters and dropout while the block runs."""
        training = self.training
        self.eval()
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self.train(training)

    def lora_state(self) -> dict[str, Tensor]:
        """Return the weights of the adapters under their names in a checkpoint."""
        return {
            name.replace("base_model.model.", "").replace(".default.weight", ""): parameter.detach()
            for name, parameter in self.model.named_parameters()
            if ".lora_" in name
        }

    def load_lora_state(self, state: dict[str, Any]) -> None:
        """Set the weights of the adapters.

        Raises:
            ModelError: The names or shapes differ from those of this body.
        """
        own = self.lora_state()
        if own.keys() != state.keys():
            names = sorted(own.keys() ^ state.keys())
            raise ModelError(f"the adapter does not fit this LLM: {len(names)} tensors differ, the first is {names[0]}")
        for name, parameter in own.items():
            value = torch.as_tensor(state[name])
            if value.shape != parameter.shape:
                shape, expected = tuple(value.shape), tuple(parameter.shape)
                raise ModelError(f"the adapter's {name} has shape {shape}, this LLM needs {expected}")
            parameter.copy_(value)


class Stack(nn.Module):
    """The MT-LLM: encoder, bridge, LLM body and task heads."""

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, llm: LlmBody, *, d_encoder: int, stride: int) -> None:
        """Connect an encoder and an LLM body with a new bridge."""
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.bridge = Bridge(d_encoder, llm.width, stride=stride)
        self.llm = llm
        self.heads = nn.ModuleDict()

    @property
    def encoder_learns(self) -> bool:
        """Whether the encoder has trainable parameters."""
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def encode(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Return the encoder states (N, L, d_encoder)."""
        hidden: Tensor = self.encoder(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        return hidden

    def pool(self, inputs_NGD: Tensor, mask_NG: Tensor, spans: Sequence[Spans] | None = None) -> Tensor:
        """Pool LLM inputs and their mask from the bridge to vectors (N, d_llm), by spans; see `span_means`."""
        pooled: Tensor = self.llm(mask_NG, inputs_NLD=inputs_NGD, spans=spans)
        return pooled

    def forward(self, ids_NL: Tensor, mask_NL: Tensor, spans: Sequence[Spans] | None = None) -> Tensor:
        """Return the vectors (N, d_llm) of encoder tokens, by spans; see `span_means`."""
        inputs_NGD, mask_NG = self.bridge(self.encode(ids_NL, mask_NL), mask_NL)
        return self.pool(inputs_NGD, mask_NG, spans and [downsample_spans(own, self.bridge.stride) for own in spans])

    def embed(self, encoded: Sequence[Encoding]) -> Tensor:
        """Return the vectors (V, d_llm) of tokenized inputs: one per text or pair, and one per choice."""
        ids_NL, mask_NL = pad_right(encoded, device=str(next(self.llm.parameters()).device))
        pooled: Tensor = self(ids_NL, mask_NL, [row.choice_spans for row in encoded])
        return pooled


def pool_in_batches(texts: Sequence[Input], pool: Callable[[list[Input]], Tensor]) -> list[Tensor]:
    """Return the vectors (V, D) of each text, in order: one row, or one row per choice.

    Batches contain texts of similar length. Gradients are disabled.
    """
    by_length = sorted(range(len(texts)), key=lambda i: sum(map(len, parts_of(texts[i]))))
    pooled: dict[int, Tensor] = {}
    with torch.no_grad():
        for start in range(0, len(texts), _BATCH_SIZE):
            indices = by_length[start : start + _BATCH_SIZE]
            batch = [texts[i] for i in indices]
            pooled_VD = pool(batch).float()
            pooled |= zip(indices, torch.split(pooled_VD, [vector_count(item) for item in batch]), strict=True)
    return [pooled[i] for i in range(len(texts))]


def predict_labels(head: nn.Module, vectors: Sequence[Tensor], labels: Sequence[str]) -> list[str]:
    """Return the best label of each text, given its vectors (V, D); without labels the index of the best choice."""
    with torch.no_grad():
        logits_VC = head(torch.cat(list(vectors)))
    # a row with a logit per label, or a column with a logit per choice
    best = [int(logits.argmax()) for logits in logits_VC.split([len(rows_VD) for rows_VD in vectors])]
    return [labels[index] if labels else str(index) for index in best]


def encode_english(tokenizer: Tokenizer, texts: Sequence[Input]) -> list[Encoding]:
    """Tokenize English training text for any encoder.

    Raises:
        ModelError: The encoder requires a language code, and has none for English.
    """
    code = next((code for code in ENGLISH if code in tokenizer.languages), None)
    if tokenizer.needs_language and code is None:
        raise ModelError(f"the encoder has no token {ENGLISH[0]}, but training text is English; choose another encoder")
    return tokenizer.encode(texts, language=code if tokenizer.needs_language else None)


def pad_right(encoded: Sequence[Encoding] | Sequence[Sequence[int]], *, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Pad rows of ids on the right to a batch: ids (N, L), 0 in the padding, and mask (N, L) of ones and zeros."""
    rows = [torch.tensor(row.ids if isinstance(row, Encoding) else list(row)) for row in encoded]
    ids_NL = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths_N = torch.tensor([len(row) for row in rows])
    mask_NL = (torch.arange(ids_NL.shape[1])[None] < lengths_N[:, None]).long()
    return ids_NL.to(device), mask_NL.to(device)


def load_llm_body(source: str, layers: int | None, *, dtype: torch.dtype = torch.float32, nf4: bool = False) -> Any:
    """Load the body of an LLM in eval mode: its first layers, or all, and its final norm.

    The source is a GGUF file (Llama architecture), a folder or a hub id. With `nf4`, the linear layers are quantized
    when the body moves to CUDA.

    Raises:
        ModelError: The LLM cannot be loaded, or has fewer layers.
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
            if getattr(model.config, "attn_logit_softcapping", None):  # of Gemma 2, missing in the attention of torch
                model.set_attn_implementation("eager")
    model.to(dtype).eval()
    if nf4:
        pack_nf4(model)
    return model


def check_layers(layers: int | None, available: int, source: str) -> int:
    """Return the number of layers to keep, after a check that the LLM has them."""
    if layers is not None and not 1 <= layers <= available:
        raise ModelError(f"{source} has {available} layers, not {layers}; choose 1 to {available}")
    return available if layers is None else layers


def _from_weights(weights: LlmWeights, source: str, layers: int | None) -> Any:
    keep = check_layers(layers, weights.config["num_hidden_layers"], source)
    settings = {**weights.config, "num_hidden_layers": keep}
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    for name, parameter in model.state_dict().items():
        weight = weights.tensor(name)
        if weight.shape != parameter.shape:
            expected = tuple(parameter.shape)
            raise ModelError(f"{source}: {name} has shape {weight.shape}, expected {expected}; get the model again")
        parameter.copy_(torch.from_numpy(weight.copy()))
    return model


def load_llm_tokenizer(source: str) -> Any:
    """Load the tokenizer of the LLM, which the teacher uses, with padding on the right.

    Raises:
        ModelError: The GGUF file, folder or hub id has no readable tokenizer.
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
    llm: LlmBody, tokenizer: Any, texts: Sequence[Input], *, max_tokens: int, settings: LoopSettings
) -> list[Tensor]:
    """Return the teacher's vectors (V, D) of each text, in the LLM's own tokens and in eval mode."""
    llm.eval()
    with settings.autocast():
        return pool_in_batches(texts, lambda batch: llm.embed(tokenizer, batch, max_tokens=max_tokens))
