"""Beyond the paper: the stack learns from translations what the fine-tuned LLM says of their English sides.

The paper's stack sees English alone and trusts the encoder to say the same in every language. The states of a small
encoder do not, token by token, so here bridge and LoRA also meet them: the student reads a sentence in any language,
the teacher its English translation (Reimers and Gurevych 2020, arXiv 2004.09813, with an LLM's vectors as targets).
Where that is not enough the encoder learns, too, and the heads, which else are the teacher's, learn soft labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from mtllm_edge.bundle.manifest import BridgeSpec, WeightSource
from mtllm_edge.errors import UsageError
from mtllm_edge_train.checkpoints import tensors
from mtllm_edge_train.checkpoints.config import StackConfig, resolve_source
from mtllm_edge_train.data.labeled import LabeledTexts
from mtllm_edge_train.distillation.losses import Standardizer, distillation_loss
from mtllm_edge_train.distillation.student import build_stack, restore_weights, run_student, save_student
from mtllm_edge_train.distillation.teacher import Memory, Teacher
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.encoder import LoadedEncoder
from mtllm_edge_train.models.llm_tokenization import MAX_TOKENS
from mtllm_edge_train.models.stack import LlmBody, Stack, embed_texts, load_llm_tokenizer
from mtllm_edge_train.multilingual.pairs import DrawnPairs, Pair, digest
from mtllm_edge_train.multilingual.soft_labels import SoftLabels, check_labelled
from mtllm_edge_train.training import loop, run_state, settings
from mtllm_edge_train.training.settings import settings_dict

_SAMPLE = 1024
"""English sentences on which the teacher's vectors and soft labels are measured: the first ones of any run, so that a
resumed one finds the same."""
_VECTORS = 0.3
"""Weight of the vectors' error beside the divergences from soft labels."""


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
    settings: settings.LoopSettings,
    bridge_learning_rate: float,
    encoder_learning_rate: float | None = None,
    labelled: Mapping[str, LabeledTexts] | None = None,
    stride: int = 1,
    sources: Sequence[WeightSource] = (),
    force: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Train a stack on sentence pairs and save it.

    Args:
        pairs: Sentences with their English translations; English ones are paired with themselves.
        start: Checkpoint of a stack to go on from, on an encoder that needs no language code.
        teacher: Checkpoint of task fine-tuning, on the same LLM cut the same way.
        out: The new checkpoint; an unfinished run of the same settings there is resumed.
        name: Its name.
        max_tokens: Pairs whose text has more encoder tokens are left out.
        steps: Of optimisation.
        settings: Optimisation; `learning_rate` is the adapters' and the heads'.
        bridge_learning_rate: The bridge's own.
        encoder_learning_rate: The encoder's own, which then goes into the checkpoint; None leaves the encoder as it is.
            All of it learns but the table of word embeddings: the reference model ships that in 4 bits, which loses
            nothing only as long as the table stays what it was.
        labelled: Task -> the English rows that the teacher learned it from, of tasks that read single texts. Their
            heads start as the teacher's and learn the soft labels of `SoftLabels`, with the start's encoder as the
            second teacher. None, and of other tasks, the heads stay the teacher's.
        stride: Of the bridge. Where it is not the start's, the bridge starts as the start's linear one over the mean
            of the states that become one LLM input.
        sources: Origins and licenses to add to the start's and the teacher's.
        force: Replace whatever is at `out`.
        log: Takes one line of text.

    Raises:
        UsageError: No pairs, or checkpoints or labelled rows that do not belong together.
    """
    if not pairs:
        raise UsageError("distillation from translations needs sentence pairs; give at least one file of them")
    taught = StackConfig.load(teacher)
    config = _joined(start, taught, teacher, name=name, stride=stride, sources=sources)
    labelled = labelled or {}
    check_labelled(labelled, taught.tasks, teacher)
    key = run_state.fingerprint(
        *(config, settings_dict(settings), bridge_learning_rate, encoder_learning_rate, steps, max_tokens),
        *(digest(pairs), [*labelled.items()], tensors.weights_digest(start), tensors.weights_digest(teacher)),
    )
    state = run_state.start_or_resume(out, "multilingual", key, force=force)
    torch.manual_seed(settings.seed)
    llm = loading.load_llm(teacher, taught, dtype=settings.frozen_dtype, nf4=settings.nf4).to(settings.device)
    teach = _teacher(llm, resolve_source(taught.llm.source, teacher), settings)
    stack, encoder = _student(config, start, settings, learn_encoder=encoder_learning_rate is not None)
    if state is not None:
        restore_weights(stack, out)
    else:
        start_from(stack, start)
    trained = out if state is not None else teacher
    stack.heads = loading.load_heads(trained, config, width=llm.width).to(settings.device)

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
    first = [row.english for step in range(-(-_SAMPLE // settings.batch_size)) for row in order[step]]
    first_ND = teach(first)
    scale = Standardizer.fit(first_ND)
    soft = None
    if labelled:
        log(f"multilingual: the start's encoder alone learns {', '.join(labelled)}")
        heads = loading.load_heads(teacher, taught, width=llm.width)
        soft = SoftLabels(labelled, taught.tasks, heads, start, settings, first, first_ND)

    def loss(batch: Sequence[_Row]) -> tuple[Tensor, dict[str, float]]:
        student_ND = run_student(stack, [row.source for row in batch], settings)
        english = [row.english for row in batch]
        vectors_ND = teach(english)
        error, figures = distillation_loss(student_ND, vectors_ND, scale)
        if soft is None:
            return error, figures
        divergence, of_tasks = soft.divergence(stack.heads, student_ND, english, vectors_ND)
        return _VECTORS * error + divergence, {**figures, **of_tasks}

    groups: list[dict[str, Any]] = [
        {"params": list(stack.bridge.parameters()), "lr": bridge_learning_rate},
        {"params": _learning(stack.llm)},
    ]
    if labelled:
        groups.append({"params": [parameter for task in labelled for parameter in stack.heads[task].parameters()]})
    if encoder_learning_rate is not None:
        groups.append({"params": _learning(stack.encoder), "lr": encoder_learning_rate})
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
        save_weights=lambda folder: save_student(folder, config, stack, encoder, start),
        log=log,
    )


def _joined(
    start: Path, taught: StackConfig, teacher: Path, *, name: str, stride: int, sources: Sequence[WeightSource]
) -> StackConfig:
    """The new checkpoint's configuration."""
    base = StackConfig.load(start)
    if base.encoder is None:
        raise UsageError(f"{start} has no encoder; name the checkpoint of a stack")
    if base.llm != taught.llm:
        raise UsageError(f"{teacher} stands on {taught.llm}, {start} on {base.llm}; train both on the same LLM")
    if stride != base.bridge.stride and base.bridge.stride != 1:
        raise UsageError(
            f"{start} has a bridge of stride {base.bridge.stride}, which stride {stride} cannot start from"
        )
    return msgspec.structs.replace(
        base,
        name=name,
        bridge=BridgeSpec.of_stride(stride),
        tasks=taught.tasks,
        sources=tuple(dict.fromkeys((*base.sources, *taught.sources, *sources))),
    )


def _teacher(llm: LlmBody, source: str, settings: settings.LoopSettings) -> Teacher:
    """The fine-tuned LLM, which remembers what it read: many languages share their English sides."""
    tokenizer = load_llm_tokenizer(source)

    def read(texts: Sequence[str]) -> Tensor:
        return torch.cat(embed_texts(llm, tokenizer, texts, max_tokens=MAX_TOKENS, settings=settings))

    return Teacher(read, Memory(), device=settings.device)


def _student(
    config: StackConfig, start: Path, settings: settings.LoopSettings, *, learn_encoder: bool
) -> tuple[Stack, LoadedEncoder]:
    """The stack on its device, and its encoder; bridge and adapters are fresh."""
    stack, encoder = build_stack(config, start, settings.frozen_dtype, nf4=settings.nf4, learn_encoder=learn_encoder)
    if stack.tokenizer.needs_language:
        raise UsageError(f"{start} has an encoder that must be told the language, which pairs of many languages cannot")
    stack.to(settings.device)
    if settings.gradient_checkpointing:
        stack.llm.enable_gradient_checkpointing()
    if settings.device == "cpu":  # where the fused kernel's backward pass is the slower one on short sentences
        stack.llm.model.base_model.model.set_attn_implementation("eager")
        if learn_encoder:
            module: Any = encoder.module
            module.set_attn_implementation("eager")
    return stack, encoder


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def start_from(stack: Any, start: Path) -> None:
    """Copy a checkpoint's adapter and bridge, the latter spread over the stack's stride where that is larger."""
    stack.llm.load_lora_state(tensors.read_lora(start))
    weight, bias = tensors.read_bridge(start)
    copies = stack.bridge.weight.shape[1] // weight.shape[1]
    spread = torch.from_numpy(weight).repeat(1, copies) / copies
    stack.bridge.weight.data.copy_(spread)
    stack.bridge.bias.data.copy_(torch.from_numpy(bias))
