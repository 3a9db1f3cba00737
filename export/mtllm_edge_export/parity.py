"""Compare every export with the torch stack it was made from, on the same real sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle.manifest import LlmBackend, Parity
from mtllm_edge.errors import ModelError
from mtllm_edge.inputs import Input, Kind

if TYPE_CHECKING:
    from mtllm_edge_train.models.stack import Stack

Array = NDArray[np.float32]
Item = TypeVar("Item")

FLOAT_COSINE_MIN = 0.999
"""Required lowest cosine of an export without quantization."""
QUANTIZED_COSINE_MEAN = 0.9
"""Required mean cosine of a quantized export."""

_STACK = "stack"
_TOKENS_PER_BATCH = 2048
"""Token budget of a batch for torch's LLM; a streamed LLM reads its weights anew for every batch."""
_ENGLISH = "eng_Latn"


@dataclass(frozen=True)
class Sentence:
    """A sentence and its FLORES-200 language code."""

    language: str
    text: str


@dataclass(frozen=True)
class ReferenceOutputs:
    """Outputs of the torch stack, in the order of the sentences."""

    texts: list[str]
    languages: list[str | None]
    """Language code passed to the encoder with each text."""
    ids: list[list[int]]
    states_LE: list[Array]
    """Encoder states of each text."""
    inputs_GD: list[Array]
    """LLM inputs of each text: the bridge's outputs."""
    pooled_VD: dict[Kind, Array]
    """Pooled vectors of the sentences, and of `task_inputs` of each other kind of task in the stack."""
    logits_NC: dict[str, Array]
    """Logits of labels or choices by task."""


def load_sentences() -> list[Sentence]:
    """Load the packaged sentences, in dozens of languages and two dozen scripts."""
    return parse_sentences(resources.files(__package__).joinpath("parity_sentences.txt").read_text(encoding="utf-8"))


def parse_sentences(text: str) -> list[Sentence]:
    """Parse one sentence per line, English unless a language code and a tab precede it; # starts a comment line."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    rows = [line.partition("\t") for line in lines]
    return [Sentence(language, sentence) if tab else Sentence(_ENGLISH, language) for language, tab, sentence in rows]


def task_inputs(texts: Sequence[str], kind: Kind) -> list[Input]:
    """Make an input of a task from each sentence: alone, paired with the next, or with the next two as choices."""
    second, third = ([*texts[n:], *texts[:n]] for n in (1, 2))
    match kind:
        case "sequence":
            return [*texts]
        case "pair":
            return [*zip(texts, second, strict=True)]
        case "multiple_choice":
            return [*zip(texts, zip(second, third, strict=True), strict=True)]


def torch_reference(
    stack: Stack, sentences: Sequence[Sentence], languages: Sequence[str], kinds: Mapping[str, Kind]
) -> ReferenceOutputs:
    """Run the torch stack on sentences: encoder and bridge on one at a time, the LLM in batches.

    A sentence whose language has no code in `languages` gets the first code: the comparison needs equal input, not
    meaningful input.
    """
    import torch

    texts = [sentence.text for sentence in sentences]
    codes = [encoder_language(sentence.language, languages) for sentence in sentences]
    ids, states, inputs = [], [], []
    with torch.inference_mode():
        for text, code in zip(texts, codes, strict=True):
            encoded = stack.tokenizer.encode([text], language=code)[0]
            ids_1L = torch.tensor([encoded.ids])
            mask_1L = torch.ones_like(ids_1L)
            states_1LE = stack.encode(ids_1L, mask_1L)
            inputs_1GD, _ = stack.bridge(states_1LE, mask_1L)
            ids.append(encoded.ids)
            states.append(states_1LE[0].numpy())
            inputs.append(inputs_1GD[0].numpy())
        vectors: dict[Kind, Any] = {"sequence": _pooled(stack, inputs)}
        for kind in sorted({*kinds.values()} - vectors.keys()):
            items = zip(task_inputs(texts, kind), codes, strict=True)
            rows = [stack.tokenizer.encode([item], language=code)[0] for item, code in items]
            vectors[kind] = torch.cat([stack.embed(batch) for batch in _batches(rows, lambda row: len(row.ids))])
        logits = {task: head(vectors[kinds[task]]).reshape(len(texts), -1) for task, head in stack.heads.items()}
    pooled = {kind: vectors_VD.numpy() for kind, vectors_VD in vectors.items()}
    return ReferenceOutputs(
        texts, codes, ids, states, inputs, pooled, {task: logits_NC.numpy() for task, logits_NC in logits.items()}
    )


def _pooled(stack: Stack, inputs_GD: Sequence[Array]) -> Any:
    """Return pooled vectors (texts, D) of LLM inputs, each (groups, D)."""
    import torch

    rows = []
    for batch in _batches(inputs_GD, len):
        lengths_N = torch.tensor([len(item_GD) for item_GD in batch])
        inputs_NGD = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item_GD) for item_GD in batch], batch_first=True)
        mask_NG = (torch.arange(inputs_NGD.shape[1])[None] < lengths_N[:, None]).long()
        rows.append(stack.pool(inputs_NGD, mask_NG))
    return torch.cat(rows)


def _batches(items: Sequence[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Split items into batches of up to `_TOKENS_PER_BATCH` tokens, padding included, in the same order."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) + 1) * max(map(length, [*batch, item])) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(item)
    yield batch


def encoder_language(language: str, languages: Sequence[str]) -> str | None:
    """Return the code to pass to an encoder: the language's own if supported, else the first; None if it takes none."""
    if not languages:
        return None
    return language if language in languages else languages[0]


def compare_bundle(bundle: Path, reference: ReferenceOutputs, *, llm_backend: LlmBackend) -> tuple[Parity, ...]:
    """Run the runtime's pipeline on the same sentences, part by part and end to end.

    Returns:
        ``encoder`` (states of all tokens), ``llm`` (pooled vectors from torch's LLM inputs), ``stack`` (text to pooled
        vector; another row for each other kind of task), and ``task <name>`` (logits) for every head.

    Raises:
        ModelError: The bundle tokenizes a sentence differently from torch.
    """
    from mtllm_edge.bundle.reader import Bundle
    from mtllm_edge.embedder import Embedder
    from mtllm_edge.tasks.head import Head

    opened = Bundle.open(bundle)
    pooled_VD: dict[Kind, Array] = {}
    with Embedder.load(opened, llm_backend=llm_backend) as embedder:
        for text, language, torch_ids in zip(reference.texts, reference.languages, reference.ids, strict=True):
            ids = embedder.encode([text], language=language)[0].ids
            if ids != torch_ids:
                raise ModelError(
                    f"{bundle} tokenizes {text[:40]!r} as {ids[:8]}..., torch as {torch_ids[:8]}...; "
                    "report this with the encoder's name"
                )
        states_TE = np.concatenate([embedder._encoder.encode([ids])[0] for ids in reference.ids])
        llm_only_ND = np.concatenate([embedder._llm.pool([inputs_GD]) for inputs_GD in reference.inputs_GD])
        for kind in reference.pooled_VD:
            items = zip(task_inputs(reference.texts, kind), reference.languages, strict=True)
            pooled_VD[kind] = embedder.pool([embedder.encode([item], language=code)[0] for item, code in items])
    rows = [
        compare_vectors("encoder", np.concatenate(reference.states_LE), states_TE),
        compare_vectors("llm", reference.pooled_VD["sequence"], llm_only_ND),
    ]
    for kind, expected_VD in reference.pooled_VD.items():
        component = _STACK if kind == "sequence" else f"{_STACK}, {kind}"
        rows.append(compare_vectors(component, expected_VD, pooled_VD[kind]))
    for name, task in opened.manifest.tasks.items():
        expected_NC = reference.logits_NC[name]
        logits_VC = Head.load(bundle, task).logits(pooled_VD[task.kind])
        rows.append(compare_vectors(f"task {name}", expected_NC, logits_VC.reshape(expected_NC.shape)))
    return tuple(rows)


def compare_vectors(component: str, expected_ND: NDArray[Any], actual_ND: NDArray[Any]) -> Parity:
    """Measure the cosine of each row and the FVU, the fraction of the expected rows' variance left unexplained."""
    expected_ND, actual_ND = expected_ND.astype(np.float64), actual_ND.astype(np.float64)
    lengths_N = np.linalg.norm(expected_ND, axis=1) * np.linalg.norm(actual_ND, axis=1)
    cosines_N = (expected_ND * actual_ND).sum(axis=1) / np.maximum(lengths_N, np.finfo(np.float64).tiny)
    variance = np.square(expected_ND - expected_ND.mean(axis=0)).sum()
    return Parity(
        component=component,
        cosine_min=float(cosines_N.min()),
        cosine_mean=float(cosines_N.mean()),
        fvu=float(np.square(expected_ND - actual_ND).sum() / max(variance, np.finfo(np.float64).tiny)),
        samples=len(expected_ND),
    )


def check_parity(parity: Sequence[Parity], *, quantized: bool) -> None:
    """Check that an export follows torch.

    Raises:
        ModelError: A cosine of the whole stack is too low, or NaN; the message has the numbers of every part.
    """
    required, statistic = (QUANTIZED_COSINE_MEAN, "mean") if quantized else (FLOAT_COSINE_MIN, "lowest")
    stacks = [row for row in parity if row.component.startswith(_STACK)]
    cosines = [row.cosine_mean if quantized else row.cosine_min for row in stacks]
    failure = next((cosine for cosine in cosines if not cosine >= required), None)  # NaN fails, too
    if failure is not None:
        numbers = "; ".join(f"{row.component} {row.cosine_min:.4f} to mean {row.cosine_mean:.4f}" for row in parity)
        raise ModelError(
            f"the bundle differs from the torch stack: {statistic} cosine {failure:.4f}, expected {required} "
            f"({numbers}); " + ("choose a finer quantization" if quantized else "report this with the model's name")
        )
