"""transformers' `from_pretrained`, but with one line for what is damaged and nothing made up for what is missing."""

from __future__ import annotations

from typing import Any

import transformers

from mtllm_edge.errors import ModelError


def pretrained_model(auto_class: Any, source: str, **options: Any) -> Any:
    """`from_pretrained`, but without random weights in the place of those that the files lack.

    Args:
        auto_class: Such as ``transformers.AutoModel``.
        source: Local folder or hub id.
        options: For `from_pretrained`.

    Raises:
        ModelError: A weight (of the encoder, where there is a decoder, too) is missing or has another shape.
    """
    model, report = auto_class.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    faults = dict.fromkeys(report["missing_keys"], "is missing")
    for name, found, expected in report["mismatched_keys"]:
        faults[name] = f"has shape {tuple(found)}, expected {tuple(expected)}"
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
    """The tokenizer of transformers, but not the empty one that it makes up for some families where the files lack.

    Raises:
        ValueError: There is no vocabulary.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:  # some made-up ones hold "▁"
        raise ValueError("it has no vocabulary")
    return tokenizer
