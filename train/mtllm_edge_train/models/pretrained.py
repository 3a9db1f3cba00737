"""`from_pretrained` of transformers, with errors instead of random weights and empty tokenizers."""

from __future__ import annotations

from typing import Any

import transformers

from mtllm_edge.errors import ModelError


def pretrained_model(auto_class: Any, source: str, **options: Any) -> Any:
    """Load a model from a folder or hub id, and refuse weights that transformers would initialize at random.

    Raises:
        ModelError: A weight is missing or has another shape. The decoder of an encoder-decoder is not checked.
    """
    model, report = auto_class.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    faults = dict.fromkeys(report["missing_keys"], "is missing")
    for name, shape, expected in report["mismatched_keys"]:
        faults[name] = f"has shape {tuple(shape)}, expected {tuple(expected)}"
    body = model.get_encoder() if model.config.is_encoder_decoder else model
    used = {id(parameter) for parameter in body.parameters()}
    names = [name for name, tensor in model.named_parameters(remove_duplicate=False) if id(tensor) in used]
    wrong = [f"{name} {faults[name]}" for name in names if name in faults]
    if wrong:
        raise ModelError(
            f"{source}: {len(wrong)} of {len(names)} weights do not fit config.json, the first: {wrong[0]}; "
            "get the model again"
        )
    return model


def pretrained_tokenizer(source: str, **options: Any) -> Any:
    """Load a tokenizer, and refuse the empty one that transformers creates for some families without files.

    Raises:
        ValueError: The tokenizer has no vocabulary.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:  # an empty one may hold "▁"
        raise ValueError("it has no vocabulary")
    return tokenizer
