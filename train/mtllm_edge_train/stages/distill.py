"""Stage 2, task distillation: the stack learns to say what the fine-tuned LLM says of the same English texts.

Teacher: the fine-tuned LLM on its own tokens, its vectors computed once. Student: the adapted stack. Trained: LoRA
alone; the bridge stays as it is, and the teacher's heads are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input
from mtllm_edge_train.checkpoints import tensors
from mtllm_edge_train.checkpoints.config import StackConfig, resolve_source
from mtllm_edge_train.data.batches import BatchOrder
from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.distillation.student import build_stack, restore_weights, run_student, save_student
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.stack import embed_texts, encode_english, load_llm_tokenizer
from mtllm_edge_train.training import loop, run_state, settings
from mtllm_edge_train.training.settings import settings_dict


def distill(
    texts: Sequence[Input],
    adapted: Path,
    teacher: Path,
    out: Path,
    *,
    name: str,
    settings: settings.LoopSettings,
    epochs: int,
    force: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Distil a fine-tuned LLM into an adapted stack and save the result with the teacher's heads.

    Args:
        texts: What the tasks read in training (see `mtllm_edge.inputs`), to which any other English text may be added:
            no label is used. Of a text with choices, the choices' vectors are matched.
        adapted: Checkpoint of general adaptation.
        teacher: Checkpoint of task fine-tuning, on the same LLM cut the same way.
        out: The new checkpoint; an unfinished run of the same settings there is resumed.
        name: Its name.
        settings: Optimisation.
        epochs: Passes over the texts.
        force: Replace whatever is at `out`.
        log: Takes one line of text.

    Raises:
        UsageError: The checkpoints do not belong together.
    """
    base, taught = StackConfig.load(adapted), StackConfig.load(teacher)
    if base.encoder is None:
        raise UsageError(f"{adapted} has no encoder; name the checkpoint of general adaptation")
    if taught.encoder is not None or not taught.tasks:
        raise UsageError(f"{teacher} is no fine-tuned LLM; name the checkpoint of task fine-tuning")
    if base.llm != taught.llm:
        raise UsageError(f"{teacher} stands on {taught.llm}, {adapted} on {base.llm}; train both on the same LLM")
    if len(texts) < 2:
        raise UsageError("task distillation needs at least two texts; give the tasks' training texts")
    config = msgspec.structs.replace(base, name=name, tasks=taught.tasks, sources=_merged(base, taught))
    key = run_state.fingerprint(
        config,
        settings_dict(settings),
        epochs,
        tensors.weights_digest(adapted),
        tensors.weights_digest(teacher),
        list(texts),
    )
    state = run_state.start_or_resume(out, "distill", key, force=force)

    log(f"distill: the teacher reads {len(texts)} texts")
    llm = loading.load_llm(teacher, taught, dtype=settings.frozen_dtype, nf4=settings.nf4).to(settings.device)
    tokenizer = load_llm_tokenizer(resolve_source(taught.llm.source, teacher))
    unique = {repr(text): text for text in texts}  # repeated texts are read once
    read = embed_texts(llm, tokenizer, [*unique.values()], max_tokens=base.encoder.max_tokens, settings=settings)
    vectors = dict(zip(unique, read, strict=True))
    targets = [vectors[repr(text)] for text in texts]  # of each text (V, D)
    scale = Standardizer.fit(torch.cat(targets))
    heads = loading.load_heads(teacher, taught, width=llm.width)
    del llm  # a large one and the stack's would not fit beside each other

    torch.manual_seed(settings.seed)
    stack, encoder = build_stack(config, adapted, settings.frozen_dtype, nf4=settings.nf4)
    stack.to(settings.device)
    if settings.gradient_checkpointing:
        stack.llm.enable_gradient_checkpointing()
    restore_weights(stack, adapted if state is None else out)
    stack.bridge.requires_grad_(False)
    stack.heads = heads
    encoded = encode_english(stack.tokenizer, texts)
    order = BatchOrder([len(text.ids) for text in encoded], settings.batch_size, seed=settings.seed)

    def loss(indices: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        batch = [encoded[i] for i in indices]
        student_VD = run_student(stack, [text.ids for text in batch], settings, [text.choice_spans for text in batch])
        return distillation_loss(student_VD, torch.cat([targets[i] for i in indices]), scale)

    loop.optimise(
        [{"params": [parameter for parameter in stack.llm.parameters() if parameter.requires_grad]}],
        loss,
        batches=order,
        size=lambda indices: sum(len(targets[i]) for i in indices),
        stage="distill",
        key=key,
        folder=out,
        steps=epochs * order.batches_per_epoch,
        settings=settings,
        state=state,
        save_weights=lambda folder: save_student(folder, config, stack, encoder, adapted),
        log=log,
    )


def _merged(base: StackConfig, taught: StackConfig) -> tuple[WeightSource, ...]:
    return tuple(dict.fromkeys((*base.sources, *taught.sources)))
