"""Beyond the paper: the stack learns from translations what the fine-tuned LLM says of their English sides.

The paper's stack sees English alone and trusts the encoder to say the same in every language. The states of a small
encoder do not, token by token, so here bridge and LoRA also meet them: the student reads a sentence in any language,
the teacher its English translation (Reimers and Gurevych 2020, arXiv 2004.09813, with an LLM's vectors as targets).
No label is used, the encoder stays as it is, and the teacher's heads are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from mtllm_edge.errors import UsageError
from mtllm_edge.manifest import Bridge, Source
from mtllm_edge_train import checkpoint, loop
from mtllm_edge_train.config import StackConfig, resolve_source
from mtllm_edge_train.finetune import MAX_TOKENS, read_all
from mtllm_edge_train.model import load_llm_tokenizer
from mtllm_edge_train.parallel import DrawnPairs, Pair, digest
from mtllm_edge_train.student import build_stack, restore_weights, run_student
from mtllm_edge_train.targets import Standardizer, distillation_loss

_SAMPLE = 1024
"""English sentences on which the mean and deviation of the teacher's vectors are measured."""


class _Row(NamedTuple):
    source: list[int]
    """The text as the encoder reads it."""
    english: str


def distill_translations(
    pairs: Sequence[Pair],
    start: Path,
    teacher: Path,
    out: Path,
    *,
    name: str,
    max_tokens: int,
    steps: int,
    settings: loop.LoopSettings,
    bridge_learning_rate: float,
    stride: int = 1,
    sources: Sequence[Source] = (),
    force: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Train bridge and LoRA on sentence pairs and save the stack with the teacher's heads.

    Args:
        pairs: Sentences with their English translations; English ones are paired with themselves.
        start: Checkpoint of a stack to go on from, on an encoder that needs no language code.
        teacher: Checkpoint of task fine-tuning, on the same LLM cut the same way.
        out: The new checkpoint; an unfinished run of the same settings there is resumed.
        name: Its name.
        max_tokens: Pairs whose text has more encoder tokens are left out.
        steps: Of optimisation.
        settings: Optimisation; `learning_rate` is the adapters'.
        bridge_learning_rate: The bridge's own.
        stride: Of the bridge. Where it is not the start's, the bridge starts as the start's linear one over the mean
            of the states that become one LLM input.
        sources: Origins and licences to add to the start's and the teacher's.
        force: Replace whatever is at `out`.
        log: Takes one line of text.

    Raises:
        UsageError: No pairs, or checkpoints that do not belong together.
    """
    if not pairs:
        raise UsageError("distillation from translations needs sentence pairs; give at least one file of them")
    base, taught = StackConfig.load(start), StackConfig.load(teacher)
    if base.encoder is None:
        raise UsageError(f"{start} has no encoder; name the checkpoint of a stack")
    if base.llm != taught.llm:
        raise UsageError(f"{teacher} stands on {taught.llm}, {start} on {base.llm}; train both on the same LLM")
    if stride != base.bridge.stride and base.bridge.stride != 1:
        raise UsageError(
            f"{start} has a bridge of stride {base.bridge.stride}, which stride {stride} cannot start from"
        )
    config = msgspec.structs.replace(
        base,
        name=name,
        bridge=Bridge.of_stride(stride),
        tasks=taught.tasks,
        sources=tuple(dict.fromkeys((*base.sources, *taught.sources, *sources))),
    )
    key = loop.fingerprint(
        *(config, loop.settings_dict(settings), bridge_learning_rate, steps, max_tokens, digest(pairs)),
        *(checkpoint.digest(start), checkpoint.digest(teacher)),
    )
    state = loop.start_or_resume(out, "multilingual", key, force=force)
    torch.manual_seed(settings.seed)
    llm = checkpoint.load_llm(teacher, taught, dtype=settings.frozen_dtype, nf4=settings.nf4).to(settings.device)
    llm_tokenizer = load_llm_tokenizer(resolve_source(taught.llm.source, teacher))
    stack, _ = build_stack(config, start, settings.frozen_dtype, nf4=settings.nf4)
    stack.to(settings.device)
    if settings.gradient_checkpointing:
        stack.llm.checkpoint_activations()
    if settings.device == "cpu":  # where the fused kernel's backward pass is the slower one on short sentences
        stack.llm.model.base_model.model.set_attn_implementation("eager")
    if stack.tokenizer.needs_language:
        raise UsageError(f"{start} has an encoder that must be told the language, which pairs of many languages cannot")
    if state is not None:
        restore_weights(stack, out)
    else:
        start_from(stack, start)
    stack.heads = checkpoint.load_heads(teacher, taught, width=llm.width)

    def read(drawn: Sequence[Pair]) -> list[_Row]:
        texts = stack.tokenizer.encode([pair.text for pair in drawn])
        return [_Row(text.ids, pair.english) for text, pair in zip(texts, drawn, strict=True)]

    order = DrawnPairs(
        pairs,
        read,
        lengths=lambda row: (len(row.source),),
        max_tokens=max_tokens,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    known: dict[str, Tensor] = {}  # many languages share their English sides

    def teach(texts: list[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            vectors = read_all(llm, llm_tokenizer, new, max_tokens=MAX_TOKENS, settings=settings)
            known.update(zip(new, torch.cat(vectors), strict=True))
        return torch.stack([known[text] for text in texts])

    first = [row.english for step in range(-(-_SAMPLE // settings.batch_size)) for row in order[step]]
    scale = Standardizer.fit(teach(first))

    def loss(batch: Sequence[_Row]) -> tuple[Tensor, dict[str, float]]:
        student_ND = run_student(stack, [row.source for row in batch], settings)
        return distillation_loss(student_ND, teach([row.english for row in batch]), scale)

    groups: list[dict[str, Any]] = [
        {"params": list(stack.bridge.parameters()), "lr": bridge_learning_rate},
        {"params": [parameter for parameter in stack.llm.parameters() if parameter.requires_grad]},
    ]
    loop.optimise(
        groups,
        loss,
        batches=order,
        stage="multilingual",
        key=key,
        folder=out,
        steps=steps,
        settings=settings,
        state=state,
        save_weights=lambda folder: checkpoint.save_parts(folder, config, stack, stack.llm, stack.heads),
        log=log,
    )


def start_from(stack: Any, start: Path) -> None:
    """Copy a checkpoint's adapter and bridge, the latter spread over the stack's stride where that is larger."""
    stack.llm.load_lora_state(checkpoint.read_lora(start))
    weight, bias = checkpoint.read_bridge(start)
    copies = stack.bridge.weight.shape[1] // weight.shape[1]
    spread = torch.from_numpy(weight).repeat(1, copies) / copies
    stack.bridge.weight.data.copy_(spread)
    stack.bridge.bias.data.copy_(torch.from_numpy(bias))
