"""Stage 1, general adaptation: the stack learns to say in one vector what the plain LLM says of the same English text.

Teacher: the LLM on its own tokens, LoRA off. Student: the stack, LoRA on. Trained: bridge and LoRA. English text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtllm_edge.bundle.manifest import MAX_STRIDE, BridgeSpec, WeightSource
from mtllm_edge.errors import UsageError
from mtllm_edge_train.checkpoints.config import (
    CHECKPOINT_VERSION,
    EncoderConfig,
    LlmConfig,
    LoraConfig,
    StackConfig,
    resolve_source,
)
from mtllm_edge_train.data.streams import WINDOW, StreamedBatches, survey
from mtllm_edge_train.distillation.bridge_init import align_bridge
from mtllm_edge_train.distillation.embedding_cache import VectorCache
from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.distillation.student import build_stack, restore_weights, run_student
from mtllm_edge_train.distillation.teacher import Teacher, read_plainly, teacher_key
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.stack import encode_english, load_llm_tokenizer
from mtllm_edge_train.training import loop, run_state, settings
from mtllm_edge_train.training.settings import settings_dict

_ALIGNED = 4096
"""Texts from which the bridge's first weights are regressed."""
_SAMPLE = 1024
"""Texts on which the teacher's mean and deviation are measured."""


def adapt(
    texts: Iterable[str],
    out: Path,
    *,
    name: str,
    encoder: EncoderConfig,
    llm: LlmConfig,
    lora: LoraConfig,
    steps: int,
    settings: settings.LoopSettings,
    bridge_learning_rate: float,
    stride: int = 1,
    teacher_cache: Path | None = None,
    sources: Sequence[WeightSource] = (),
    force: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Train a new stack on English text and save it as a checkpoint.

    Args:
        texts: English texts: a list, or a `TextStream`, which is read as needed. What the run is going to read is read
            once before it (but of a data set that may come over a network), so that faults are found then; a resumed
            run reads past what it has seen. A corpus that ends before the run begins anew, in another order.
        out: The checkpoint folder; an unfinished run of the same settings there is resumed.
        name: The checkpoint's name.
        encoder: The frozen encoder.
        llm: The LLM whose body is adapted.
        lora: The adapters.
        steps: Of optimisation.
        settings: Optimisation; `learning_rate` is the adapters'.
        bridge_learning_rate: The bridge starts from noise and takes larger steps.
        stride: How many neighbouring encoder states become one LLM input, 1 to 4.
        teacher_cache: Folder of the teacher's vectors, where several runs may share them; None keeps none.
        sources: Origins and licenses for the checkpoint.
        force: Replace whatever is at `out`.
        log: Takes one line of text.

    Raises:
        UsageError: No such stride, fewer than two texts, or `out` cannot be used.
    """
    if not 1 <= stride <= MAX_STRIDE:
        raise UsageError(f"the bridge cannot have stride {stride}; choose 1 to {MAX_STRIDE}")
    config = StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name=name,
        encoder=encoder,
        bridge=BridgeSpec.of_stride(stride),
        llm=llm,
        lora=lora,
        tasks={},
        sources=tuple(sources),
    )
    found = survey(texts, limit=steps * settings.batch_size + WINDOW, sample=_ALIGNED, seed=settings.seed)
    if found.total < 2:
        raise UsageError("general adaptation needs at least two texts, better a hundred thousand")
    key = run_state.fingerprint(config, settings_dict(settings), steps, bridge_learning_rate, found.digest)
    state = run_state.start_or_resume(out, "adapt", key, force=force)
    torch.manual_seed(settings.seed)
    stack, _ = build_stack(config, None, settings.frozen_dtype, nf4=settings.nf4)
    llm_tokenizer = load_llm_tokenizer(resolve_source(llm.source))
    stack.to(settings.device)
    if settings.gradient_checkpointing:
        stack.llm.enable_gradient_checkpointing()
    if state is not None:
        restore_weights(stack, out)
    else:
        align_bridge(stack, found.sample, llm_tokenizer)

    cache = None
    if teacher_cache is not None:
        teacher = teacher_key(llm, max_tokens=encoder.max_tokens, settings=settings)
        cache = VectorCache(teacher_cache, teacher, width=stack.llm.width)

    def read(texts: Sequence[str]) -> Tensor:
        return read_plainly(stack.llm, llm_tokenizer, texts, max_tokens=encoder.max_tokens, settings=settings)

    teach = Teacher(read, cache, device=settings.device)
    sample = found.sample[:: -(-len(found.sample) // _SAMPLE)]
    scale = Standardizer.fit(torch.cat([teach(sample[i : i + 32]) for i in range(0, len(sample), 32)]))

    def loss(batch: Sequence[str]) -> tuple[Tensor, dict[str, float]]:
        student_ids = [encoded.ids for encoded in encode_english(stack.tokenizer, batch)]
        return distillation_loss(run_student(stack, student_ids, settings), teach(batch), scale)

    groups: list[dict[str, Any]] = [
        {"params": list(stack.bridge.parameters()), "lr": bridge_learning_rate},
        {"params": [parameter for parameter in stack.llm.parameters() if parameter.requires_grad]},
    ]
    loop.optimise(
        groups,
        loss,
        batches=StreamedBatches(texts, settings.batch_size, seed=settings.seed),
        stage="adapt",
        key=key,
        folder=out,
        steps=steps,
        settings=settings,
        state=state,
        save_weights=lambda folder: loading.save_parts(folder, config, stack, stack.llm, stack.heads),
        log=log,
    )
