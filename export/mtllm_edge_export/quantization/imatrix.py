"""Importance matrix of llama.cpp: mean squares of the inputs of the LLM's matrices over calibration texts.

With it, 4-bit quantization puts the error of a block where the activations are small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import UsageError
from mtllm_edge_export.parity import Sentence, encoder_language, parse_sentences

if TYPE_CHECKING:
    from mtllm_edge_train.models.stack import Stack

Array = NDArray[np.float32]

IMATRIX_QUANTIZATIONS = ("q4_0", "q4_k_m", "iq4_nl")
"""Types whose quantization in llama.cpp uses an importance matrix."""
_MATRIX = re.compile(r"layers\.\d+\.(self_attn|mlp)\.\w+_proj")
_ADAPTED = "base_model.model."


def load_texts(path: Path) -> list[Sentence]:
    """Load calibration texts: one per line, in English, or preceded by a language code and a tab.

    Raises:
        UsageError: The file is not readable, or empty.
    """
    try:
        sentences = parse_sentences(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not readable ({error}); name a UTF-8 text file with one text per line") from None
    if not sentences:
        raise UsageError(f"{path} contains no text; name a UTF-8 text file with one text per line")
    return sentences


def importance_matrix(stack: Stack, sentences: Sequence[Sentence], languages: Sequence[str]) -> dict[str, Array]:
    """Compute the importance matrix with the torch stack on calibration texts.

    Returns:
        transformers' name of a weight -> mean square of each of its inputs, (in,).
    """
    import torch

    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(_: Any, inputs: tuple[Any, ...]) -> None:
            tokens_TI = inputs[0].flatten(0, 1)
            sums[name] = sums.get(name, 0.0) + tokens_TI.double().square().sum(dim=0)
            counts[name] = counts.get(name, 0) + len(tokens_TI)

        return add

    handles = [
        module.register_forward_pre_hook(hook(f"{plain}.weight"))
        for name, module in stack.llm.model.named_modules()
        if _MATRIX.fullmatch(plain := name.removeprefix(_ADAPTED))
    ]
    try:
        with torch.inference_mode():
            for sentence in sentences:
                code = encoder_language(sentence.language, languages)
                stack.embed(stack.tokenizer.encode([sentence.text], language=code))
    finally:
        for handle in handles:
            handle.remove()
    return {name: (squares_I / counts[name]).float().numpy() for name, squares_I in sums.items()}
