"""Every export is compared with the torch stack that it came from, on the same real sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import ModelError
from mtllm_edge.manifest import Parity

if TYPE_CHECKING:
    from mtllm_edge_train.model import Stack

Array = NDArray[np.float32]

FLOAT_COSINE_MIN = 0.999
"""What every sentence must reach where nothing was quantised."""
QUANTIZED_COSINE_MEAN = 0.9
"""What the sentences must reach on average where something was."""


@dataclass(frozen=True)
class Sentence:
    """A sentence and its FLORES-200 language code."""

    language: str
    text: str


@dataclass(frozen=True)
class Reference:
    """What the torch stack makes of one sentence after the other."""

    texts: list[str]
    languages: list[str | None]
    """Code given to the encoder with each text."""
    ids: list[list[int]]
    states_LE: list[Array]
    """Encoder states of each text."""
    inputs_GD: list[Array]
    """LLM inputs of each text: the bridge's outputs."""
    pooled_ND: Array
    logits_NC: dict[str, Array]
    """Logits by task."""


def load_sentences() -> list[Sentence]:
    """The packaged sentences: dozens of languages, two dozen scripts."""
    text = resources.files(__package__).joinpath("parity_sentences.txt").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return [Sentence(language, sentence) for language, sentence in rows]


def torch_reference(stack: Stack, sentences: Sequence[Sentence], languages: Sequence[str]) -> Reference:
    """Run the torch stack on single sentences, so that no padding enters.

    Args:
        stack: In eval mode, on the CPU.
        sentences: What to run.
        languages: Codes that the encoder knows, empty where it takes none. A sentence in another language is given the
            first one: the comparison needs equal input, not sensible input.
    """
    import torch

    codes = [_known_code(sentence.language, languages) for sentence in sentences]
    ids, states, inputs, pooled = [], [], [], []
    with torch.inference_mode():
        for sentence, code in zip(sentences, codes, strict=True):
            encoded = stack.tokenizer.encode([sentence.text], language=code)[0]
            ids_1L = torch.tensor([encoded.ids])
            mask_1L = torch.ones_like(ids_1L)
            states_1LE = stack.encode(ids_1L, mask_1L)
            inputs_1GD, groups_1G = stack.bridge(states_1LE, mask_1L)
            ids.append(encoded.ids)
            states.append(states_1LE[0].numpy())
            inputs.append(inputs_1GD[0].numpy())
            pooled.append(stack.pool(inputs_1GD, groups_1G))
        pooled_ND = torch.cat(pooled)
        logits = {task: head(pooled_ND).numpy() for task, head in stack.heads.items()}
    texts = [sentence.text for sentence in sentences]
    return Reference(texts, codes, ids, states, inputs, pooled_ND.numpy(), logits)


def _known_code(language: str, languages: Sequence[str]) -> str | None:
    if not languages:
        return None
    return language if language in languages else languages[0]


def compare(bundle: Path, reference: Reference) -> tuple[Parity, ...]:
    """Run the runtime's own pipeline on the same sentences, part by part and end to end.

    Args:
        bundle: A bundle folder, complete but for the comparison.
        reference: What torch made of the sentences.

    Returns:
        ``encoder`` (every token's state), ``llm`` (pooled, from torch's inputs), ``stack`` (text to pooled), and
        ``task <name>`` (logits) for every head.

    Raises:
        ModelError: The bundle reads a sentence as other tokens than torch does.
    """
    from mtllm_edge.bundle import Bundle
    from mtllm_edge.embedder import Embedder
    from mtllm_edge.heads import Head

    opened = Bundle.open(bundle)
    with Embedder.load(opened) as embedder:
        encoded = [
            embedder.encode([text], language=code)[0]
            for text, code in zip(reference.texts, reference.languages, strict=True)
        ]
        for text, mine, torchs in zip(reference.texts, encoded, reference.ids, strict=True):
            if mine.ids != torchs:
                raise ModelError(f"{bundle} reads {text[:40]!r} as tokens {mine.ids[:8]}..., torch as {torchs[:8]}...")
        # The pipeline's inner stages are nobody else's business, so they are not public.
        states_TE = np.concatenate([embedder._encoder.encode([ids])[0] for ids in reference.ids])
        from_inputs_ND = np.concatenate([embedder._llm.pool([inputs_GD]) for inputs_GD in reference.inputs_GD])
        pooled_ND = embedder.pool(encoded)
    rows = [
        measure("encoder", np.concatenate(reference.states_LE), states_TE),
        measure("llm", reference.pooled_ND, from_inputs_ND),
        measure("stack", reference.pooled_ND, pooled_ND),
    ]
    for name, task in opened.manifest.tasks.items():
        head = Head.load(bundle, task)
        logits_NC = pooled_ND @ head.weight_CE.T
        if head.bias_C is not None:
            logits_NC += head.bias_C
        rows.append(measure(f"task {name}", reference.logits_NC[name], logits_NC))
    return tuple(rows)


def measure(component: str, expected_ND: NDArray[Any], found_ND: NDArray[Any]) -> Parity:
    """Cosine of each row, and the fraction of the expected rows' variance that the found rows do not explain."""
    expected_ND, found_ND = expected_ND.astype(np.float64), found_ND.astype(np.float64)
    lengths_N = np.linalg.norm(expected_ND, axis=1) * np.linalg.norm(found_ND, axis=1)
    cosines_N = (expected_ND * found_ND).sum(axis=1) / np.maximum(lengths_N, np.finfo(np.float64).tiny)
    variance = np.square(expected_ND - expected_ND.mean(axis=0)).sum()
    return Parity(
        component=component,
        cosine_min=float(cosines_N.min()),
        cosine_mean=float(cosines_N.mean()),
        fvu=float(np.square(expected_ND - found_ND).sum() / max(variance, np.finfo(np.float64).tiny)),
        samples=len(expected_ND),
    )


def check_parity(parity: Sequence[Parity], *, quantized: bool) -> None:
    """Refuse an export that does not follow torch.

    Args:
        parity: The comparison.
        quantized: Whether any part has less than float32.

    Raises:
        ModelError: The stack's cosine is too low, or no number; the message has the numbers of every part.
    """
    stack = next(row for row in parity if row.component == "stack")
    found, wanted, which = (
        (stack.cosine_mean, QUANTIZED_COSINE_MEAN, "mean")
        if quantized
        else (stack.cosine_min, FLOAT_COSINE_MIN, "lowest")
    )
    if not found >= wanted:
        numbers = "; ".join(f"{row.component} {row.cosine_min:.4f} to mean {row.cosine_mean:.4f}" for row in parity)
        raise ModelError(
            f"the bundle does not follow the torch stack: {which} cosine {found:.4f}, expected {wanted} ({numbers}); "
            + ("choose a finer quantisation" if quantized else "report this with the model's name")
        )
