"""Task fine-tuning: the English LLM, without the encoder, learns the tasks. It is the teacher of task distillation.

Trained: LoRA and one linear head per task, on the LLM's own tokens. Several tasks may share the LoRA. A head starts as
the logistic regression on the frozen LLM's vectors, so that the first steps do not distort what the LLM knows (Kumar et
al. 2022, arXiv 2202.10054); with a thousand labels that decides between gain and loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.manifest import Source
from mtllm_edge_train import checkpoint, loop
from mtllm_edge_train.config import (
    CHECKPOINT_VERSION,
    LlmConfig,
    LoraConfig,
    StackConfig,
    TaskConfig,
    resolve_source,
)
from mtllm_edge_train.data import BatchOrder, LabelledTexts
from mtllm_edge_train.model import LlmBody, load_llm_body, load_llm_tokenizer, pool_in_batches
from mtllm_edge_train.probe import logistic_regression
from mtllm_edge_train.targets import Standardizer

MAX_TOKENS = 512
"""Longer texts lose their end."""
_RIDGE = 50.0
"""Penalty on the squared weights of a head's first state."""


def finetune(
    tasks: Mapping[str, LabelledTexts],
    out: Path,
    *,
    name: str,
    llm: LlmConfig,
    lora: LoraConfig,
    settings: loop.LoopSettings,
    epochs: int,
    sources: Sequence[Source] = (),
    force: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Train a teacher on English labels and save it as a checkpoint without an encoder.

    Args:
        tasks: Task name -> its training set.
        out: The checkpoint folder; an unfinished run of the same settings there is resumed.
        name: The checkpoint's name.
        llm: The LLM; the same one, cut the same way, as in the stack that will learn from it.
        lora: The adapters.
        settings: Optimisation.
        epochs: Passes over all tasks' texts together.
        sources: Origins and licences for the checkpoint.
        force: Replace whatever is at `out`.
        log: Takes one line of text.

    Raises:
        UsageError: No task was given, or one with a name that cannot be used.
        DataError: A task has fewer than two labels.
    """
    if not tasks:
        raise UsageError("no task to fine-tune on; give at least one labelled file")
    for task, data in tasks.items():
        if not task.isidentifier() or hasattr(nn.ModuleDict(), task):
            raise UsageError(f"a task cannot be called {task!r}; choose another word of letters, digits and _")
        if len(data.counts) < 2:
            raise DataError(
                f"task {task!r} has {len(data.texts)} texts with the labels {[*data.counts]}; give two labels"
            )
    labels = {task: tuple(data.counts) for task, data in tasks.items()}
    config = StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name=name,
        encoder=None,
        llm=llm,
        lora=lora,
        tasks={task: TaskConfig(kind="sequence", labels=names) for task, names in labels.items()},
        sources=tuple(sources),
    )
    items = [
        (task, text, labels[task].index(label))
        for task, data in tasks.items()
        for text, label in zip(data.texts, data.labels, strict=True)
    ]
    order = BatchOrder([len(text) for _, text, _ in items], settings.batch_size, seed=settings.seed)
    key = loop.fingerprint(config, loop.settings_dict(settings), epochs, items)
    state = loop.start_or_resume(out, "finetune", key, force=force)
    for task, data in tasks.items():
        log(f"{task}: {len(data.texts)} texts, {data.counts}")

    torch.manual_seed(settings.seed)
    source = resolve_source(llm.source)
    body = LlmBody(
        load_llm_body(source, llm.layers, dtype=settings.frozen_dtype),
        bidirectional=llm.attention == "bidirectional",
        lora=lora,
    ).to(settings.device)
    if settings.gradient_checkpointing:
        body.checkpoint_activations()
    tokenizer = load_llm_tokenizer(source)
    if state is not None:
        body.load_lora_state(checkpoint.read_lora(out))
        heads = checkpoint.load_heads(out, config, width=body.width)
    else:
        log("finetune: reading the texts with the frozen LLM")
        heads = nn.ModuleDict()
        for task, data in tasks.items():
            vectors_ND = read_all(body, tokenizer, data.texts, max_tokens=MAX_TOKENS, settings=settings)
            gold_N = torch.tensor([labels[task].index(label) for label in data.labels])
            scale = Standardizer.fit(vectors_ND.cpu())
            heads[task] = logistic_regression(vectors_ND.cpu(), gold_N, len(labels[task]), scale=scale, penalty=_RIDGE)
    heads.to(settings.device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = [items[i] for i in order[step]]
        body.train()
        with settings.autocast():
            pooled_ND = body.read(tokenizer, [text for _, text, _ in batch], max_tokens=MAX_TOKENS)
        total, right = pooled_ND.new_zeros(()), 0
        for task in labels:
            rows = [row for row, item in enumerate(batch) if item[0] == task]
            if rows:
                logits_NC = heads[task](pooled_ND[rows])
                gold_N = torch.tensor([batch[row][2] for row in rows], device=settings.device)
                total = total + nn.functional.cross_entropy(logits_NC, gold_N, reduction="sum")
                right += int((logits_NC.argmax(1) == gold_N).sum())
        return total / len(batch), {"accuracy": right / len(batch)}

    parameters = [parameter for parameter in body.parameters() if parameter.requires_grad]
    loop.optimise(
        [{"params": parameters + list(heads.parameters())}],
        loss,
        stage="finetune",
        key=key,
        folder=out,
        steps=epochs * order.batches_per_epoch,
        settings=settings,
        state=state,
        save_weights=lambda folder: checkpoint.save_parts(folder, config, None, body, heads),
        log=log,
    )


def read_all(
    llm: LlmBody, tokenizer: Any, texts: Sequence[str], *, max_tokens: int, settings: loop.LoopSettings
) -> Tensor:
    """Pooled vectors (N, D) of texts in the LLM's own tokens, as a teacher says them: in eval mode."""
    llm.eval()
    with settings.autocast():
        return pool_in_batches(texts, lambda batch: llm.read(tokenizer, batch, max_tokens=max_tokens))
