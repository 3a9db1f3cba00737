"""Every export is compared with the torch stack that it came from, on the same real sentences."""

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
"""What every sentence must reach where nothing was quantised."""
QUANTIZED_COSINE_MEAN = 0.9
"""What the sentences must reach on average where something was."""


_STACK = "stack"
_TOKENS = 2048
"""Most that torch's LLM reads at once; one that is streamed is read anew for every batch."""
_ENGLISH = "eng_Latn"


@dataclass(frozen=True)
class Sentence:
    """A sentence and its FLORES-200 language code."""

    language: str
    text: str


@dataclass(frozen=True)
class ReferenceOutputs:
    """What the torch stack makes of one sentence after the other."""

    texts: list[str]
    languages: list[str | None]
    """Code given to the encoder with each text."""
    ids: list[list[int]]
    states_LE: list[Array]
    """Encoder states of each text."""
    inputs_GD: list[Array]
    """LLM inputs of each text: the bridge's outputs."""
    pooled_VD: dict[Kind, Array]
    """Pooled vectors of the sentences, and of `task_inputs` by the other kinds of tasks that there are."""
    logits_NC: dict[str, Array]
    """Logits of labels or choices by task."""


def load_sentences() -> list[Sentence]:
    """The packaged sentences: dozens of languages, two dozen scripts."""
    return parse_sentences(resources.files(__package__).joinpath("parity_sentences.txt").read_text(encoding="utf-8"))


def parse_sentences(text: str) -> list[Sentence]:
    """One sentence a line, after its language code and a tab, or alone, which is English; # begins a remark."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    rows = [line.partition("\t") for line in lines]
    return [Sentence(language, sentence) if tab else Sentence(_ENGLISH, language) for language, tab, sentence in rows]


def task_inputs(texts: Sequence[str], kind: Kind) -> list[Input]:
    """Sentences as a kind of task reads them: alone, each with the next one, or each with the next two as choices."""
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
    """Run the torch stack on sentences; encoder and bridge on one at a time, the LLM on a batch.

    Args:
        stack: In eval mode, on the CPU.
        sentences: What to run.
        languages: Codes that the encoder knows, empty where it takes none. A sentence in another language is given the
            first one: the comparison needs equal input, not sensible input.
        kinds: Kind of each task.
    """
    import torch

    codes = [encoder_language(sentence.language, languages) for sentence in sentences]
    ids, states, inputs = [], [], []
    with torch.inference_mode():
        for sentence, code in zip(sentences, codes, strict=True):
            encoded = stack.tokenizer.encode([sentence.text], language=code)[0]
            ids_1L = torch.tensor([encoded.ids])
            mask_1L = torch.ones_like(ids_1L)
            states_1LE = stack.encode(ids_1L, mask_1L)
            inputs_1GD, _ = stack.bridge(states_1LE, mask_1L)
            ids.append(encoded.ids)
            states.append(states_1LE[0].numpy())
            inputs.append(inputs_1GD[0].numpy())
        texts = [sentence.text for sentence in sentences]
        vectors: dict[Kind, Any] = {"sequence": _pooled(stack, inputs)}
        for kind in sorted({*kinds.values()} - vectors.keys()):
            readings = zip(task_inputs(texts, kind), codes, strict=True)
            read = [stack.tokenizer.encode([item], language=code)[0] for item, code in readings]
            vectors[kind] = torch.cat([stack.embed(batch) for batch in _batches(read, lambda text: len(text.ids))])
        logits = {task: head(vectors[kinds[task]]).reshape(len(texts), -1) for task, head in stack.heads.items()}
    return ReferenceOutputs(
        texts,
        codes,
        ids,
        states,
        inputs,
        {kind: vectors_VD.numpy() for kind, vectors_VD in vectors.items()},
        {task: logits_NC.numpy() for task, logits_NC in logits.items()},
    )


def _pooled(stack: Stack, inputs_GD: Sequence[Array]) -> Any:
    """Pooled vectors (texts, D) of LLM inputs, each (groups, D)."""
    import torch

    rows = []
    for batch in _batches(inputs_GD, len):
        lengths_N = torch.tensor([len(one) for one in batch])
        inputs_NGD = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in batch], batch_first=True)
        mask_NG = (torch.arange(inputs_NGD.shape[1])[None] < lengths_N[:, None]).long()
        rows.append(stack.pool(inputs_NGD, mask_NG))
    return torch.cat(rows)


def _batches(items: Sequence[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Neighbours that take `_TOKENS` together once all are as long as the longest."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) + 1) * max(map(length, [*batch, item])) > _TOKENS:
            yield batch
            batch = []
        batch.append(item)
    yield batch


def encoder_language(language: str, languages: Sequence[str]) -> str | None:
    """The code that an encoder is given with a sentence: its own, or the first of those known; None of none."""
    if not languages:
        return None
    return language if language in languages else languages[0]


def compare(bundle: Path, reference: ReferenceOutputs, *, llm_backend: LlmBackend) -> tuple[Parity, ...]:
    """Run the runtime's own pipeline on the same sentences, part by part and end to end.

    Args:
        bundle: A bundle folder, complete but for the comparison.
        reference: What torch made of the sentences.
        llm_backend: Form of the LLM.

    Returns:
        ``encoder`` (every token's state), ``llm`` (pooled, from torch's inputs), ``stack`` (text to pooled), the same
        of pairs and choices where there are tasks of those, and ``task <name>`` (logits) for every head.

    Raises:
        ModelError: The bundle reads a sentence as other tokens than torch does.
    """
    from mtllm_edge.bundle.reader import Bundle
    from mtllm_edge.embedder import Embedder
    from mtllm_edge.tasks.head import Head

    opened = Bundle.open(bundle)
    with Embedder.load(opened, llm_backend=llm_backend) as embedder:
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
        pooled_VD: dict[Kind, Array] = {}
        for kind in reference.pooled_VD:
            readings = zip(task_inputs(reference.texts, kind), reference.languages, strict=True)
            pooled_VD[kind] = embedder.pool([embedder.encode([item], language=code)[0] for item, code in readings])
    rows = [
        measure("encoder", np.concatenate(reference.states_LE), states_TE),
        measure("llm", reference.pooled_VD["sequence"], from_inputs_ND),
    ]
    for kind, expected_VD in reference.pooled_VD.items():
        rows.append(measure(_STACK + ("" if kind == "sequence" else f", {kind}"), expected_VD, pooled_VD[kind]))
    for name, task in opened.manifest.tasks.items():
        expected_NC = reference.logits_NC[name]
        logits_VC = Head.load(bundle, task).logits(pooled_VD[task.kind])
        rows.append(measure(f"task {name}", expected_NC, logits_VC.reshape(expected_NC.shape)))
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
    wanted, which = (QUANTIZED_COSINE_MEAN, "mean") if quantized else (FLOAT_COSINE_MIN, "lowest")
    stacks = [row for row in parity if row.component.startswith(_STACK)]
    cosines = [row.cosine_mean if quantized else row.cosine_min for row in stacks]
    found = next((cosine for cosine in cosines if not cosine >= wanted), None)  # one that is no number, too
    if found is not None:
        numbers = "; ".join(f"{row.component} {row.cosine_min:.4f} to mean {row.cosine_mean:.4f}" for row in parity)
        raise ModelError(
            f"the bundle does not follow the torch stack: {which} cosine {found:.4f}, expected {wanted} ({numbers}); "
            + ("choose a finer quantisation" if quantized else "report this with the model's name")
        )
