"""Task fine-tuning: the English LLM, without the encoder, learns the tasks. It is the teacher of task distillation.

Trained: LoRA and one linear head per task, on the LLM's own tokens. Several tasks may share the LoRA. A head starts as
the logistic regression on the frozen LLM's vectors, so that the first steps do not distort what the LLM knows (Kumar et
al. 2022, arXiv 2202.10054); with a thousand labels that decides between gain and loss. The paper trains for 3 epochs on
NLI, 20 on NusaX, 5 on Belebele.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.inputs import parts_of, vector_count
from mtllm_edge_train.checkpoints import tensors
from mtllm_edge_train.checkpoints.config import (
    CHECKPOINT_VERSION,
    LlmConfig,
    LoraConfig,
    StackConfig,
    TaskConfig,
    resolve_source,
)
from mtllm_edge_train.data.batches import BatchOrder
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.linear_probe import logistic_regression
from mtllm_edge_train.distillation.losses import Standardizer
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.llm_tokenization import MAX_TOKENS
from mtllm_edge_train.models.stack import LlmBody, embed_texts, load_llm_body, load_llm_tokenizer
from mtllm_edge_train.training import loop, run_state, settings
from mtllm_edge_train.training.settings import settings_dict

_RIDGE = 50.0
"""Penalty on the squared weights of a head's first state."""


def finetune(
    tasks: Mapping[str, LabeledTexts],
    out: Path,
    *,
    name: str,
    llm: LlmConfig,
    lora: LoraConfig,
    settings: settings.LoopSettings,
    epochs: int,
    sources: Sequence[WeightSource] = (),
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
        sources: Origins and licenses for the checkpoint.
        force: Replace whatever is at `out`.
        log: Takes one line of text.

    Raises:
        UsageError: No task was given, or one with a name that cannot be used.
        DataError: A task has fewer than two labels, or one choice is always right.
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
    configs = {
        task: TaskConfig(kind=data.kind, labels=() if data.kind == "multiple_choice" else tuple(data.counts))
        for task, data in tasks.items()
    }
    config = StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name=name,
        encoder=None,
        llm=llm,
        lora=lora,
        tasks=configs,
        sources=tuple(sources),
    )
    gold = {
        task: [names.index(label) if (names := configs[task].labels) else int(label) for label in data.labels]
        for task, data in tasks.items()
    }
    items = [
        (task, item, index) for task, data in tasks.items() for item, index in zip(data.inputs, gold[task], strict=True)
    ]
    lengths = [sum(map(len, parts_of(item))) for _, item, _ in items]
    order = BatchOrder(lengths, settings.batch_size, seed=settings.seed)
    key = run_state.fingerprint(config, settings_dict(settings), epochs, items)
    state = run_state.start_or_resume(out, "finetune", key, force=force)
    for task, data in tasks.items():
        log(f"{task} {data.summary}")

    torch.manual_seed(settings.seed)
    source = resolve_source(llm.source)
    body = LlmBody(
        load_llm_body(source, llm.layers, dtype=settings.frozen_dtype, nf4=settings.nf4),
        bidirectional=llm.attention == "bidirectional",
        lora=lora,
    ).to(settings.device)
    if settings.gradient_checkpointing:
        body.enable_gradient_checkpointing()
    tokenizer = load_llm_tokenizer(source)
    if state is not None:
        body.load_lora_state(tensors.read_lora(out))
        heads = loading.load_heads(out, config, width=body.width)
    else:
        log("finetune: reading the texts with the frozen LLM")
        heads = nn.ModuleDict()
        for task, data in tasks.items():
            vectors_VD = torch.cat(
                embed_texts(body, tokenizer, data.inputs, max_tokens=MAX_TOKENS, settings=settings)
            ).cpu()
            scale, rows = Standardizer.fit(vectors_VD), configs[task].rows
            heads[task] = logistic_regression(vectors_VD, torch.tensor(gold[task]), rows, scale=scale, penalty=_RIDGE)
    heads.to(settings.device)

    def loss(indices: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        batch = [items[i] for i in indices]
        body.train()
        with settings.autocast():
            pooled_VD = body.embed(tokenizer, [item for _, item, _ in batch], max_tokens=MAX_TOKENS)
        vectors = torch.split(pooled_VD, [vector_count(item) for _, item, _ in batch])
        total, right = pooled_VD.new_zeros(()), 0
        for task in tasks:
            own = [place for place, item in enumerate(batch) if item[0] == task]
            if own:
                # Labels are a row of logits, choices a column of them.
                logits_NC = heads[task](torch.cat([vectors[place] for place in own])).reshape(len(own), -1)
                gold_N = torch.tensor([batch[place][2] for place in own], device=settings.device)
                total = total + nn.functional.cross_entropy(logits_NC, gold_N, reduction="sum")
                right += int((logits_NC.argmax(1) == gold_N).sum())
        return total / len(batch), {"accuracy": right / len(batch)}

    parameters = [parameter for parameter in body.parameters() if parameter.requires_grad]
    loop.optimise(
        [{"params": parameters + list(heads.parameters())}],
        loss,
        batches=order,
        stage="finetune",
        key=key,
        folder=out,
        steps=epochs * order.batches_per_epoch,
        settings=settings,
        state=state,
        save_weights=lambda folder: loading.save_parts(folder, config, None, body, heads),
        log=log,
    )
