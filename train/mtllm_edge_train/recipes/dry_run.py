"""What a recipe costs, before anything is downloaded or rented.

The stack is built from this package's own classes in its true shapes on torch's meta device, which computes shapes and
no numbers, and trained for one step: that the shapes fit, what gets a gradient, and how many operations it takes are
seen, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from mtllm_edge.errors import ModelError
from mtllm_edge_train.checkpoints.config import LoraConfig
from mtllm_edge_train.models.stack import LlmBody, Stack
from mtllm_edge_train.recipes import cost_model


@dataclass(frozen=True)
class Run:
    """What is to be estimated: general adaptation on full-length texts, the most that it can cost."""

    encoder: Mapping[str, Any]
    """Keys of transformers' `M2M100Config`."""
    llm: Mapping[str, Any]
    """Keys of transformers' `LlamaConfig`; the LLM reads in both directions."""
    lora: LoraConfig
    steps: int
    batch_size: int
    tokens: int
    """Of every text, for the encoder and for the LLM as teacher."""
    mfu: float
    """Fraction of a device's peak that is reached; what is computed again counts as work."""


def build(run: Run) -> Stack:
    """The stack in its true shapes, without weights: frozen ones in bfloat16, trained ones in float32."""
    with torch.device("meta"):
        encoder = transformers.M2M100Model(transformers.M2M100Config(**run.encoder)).get_encoder()
        encoder.requires_grad_(False)
        body = transformers.LlamaModel(transformers.LlamaConfig(**run.llm)).to(torch.bfloat16)
        llm = LlmBody(body, bidirectional=True, lora=run.lora)
        nothing: Any = None  # no text is read, so there is no tokenizer
        return Stack(encoder.to(torch.bfloat16), nothing, llm, d_encoder=encoder.config.d_model, stride=1)


def count_flops(stack: Stack, tokens: int) -> dict[str, int]:
    """Operations of one step with one text, as torch counts those of its matrix products; the step is taken on the way.

    Args:
        stack: On the meta device.
        tokens: Length of the text, for student and teacher.

    Returns:
        ``student`` and ``teacher``, and ``recomputed``, which gradient checkpointing adds.

    Raises:
        ModelError: Not exactly bridge and adapters get a gradient.
    """
    ids_NL = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    stack.float().train()  # the meta device has no autocast; sizes of products are the same
    encoder: Any = stack.encoder.eval()
    encode = encoder.forward
    # transformers would look whether the mask masks anything, and there are no values to look at
    encoder.forward = lambda input_ids, attention_mask: encode(input_ids=input_ids)

    def learn() -> None:
        stack.zero_grad()
        stack(ids_NL, torch.ones_like(ids_NL)).sum().backward()

    def teach() -> None:
        with torch.no_grad(), stack.llm.without_lora():
            stack.llm(torch.ones_like(ids_NL), ids_NL=ids_NL)

    flops = {"student": _count(learn), "teacher": _count(teach)}
    for name, tensor in stack.named_parameters():
        if (tensor.grad is not None) != (name.startswith("bridge.") or ".lora_" in name):
            raise ModelError(f"{name} {'gets a' if tensor.grad is not None else 'gets no'} gradient")
    stack.llm.enable_gradient_checkpointing()
    return {**flops, "recomputed": _count(learn) - flops["student"]}


def report(run: Run) -> dict[str, Any]:
    """All figures, as plain values for JSON; sizes in bytes."""
    stack = build(run)
    parameters = cost_model.count_parameters(stack)
    activations = cost_model.estimate_activations(stack, run.lora)
    bundle = cost_model.bundle_bytes(stack)
    texts = run.steps * run.batch_size
    flops = {part: texts * count for part, count in count_flops(stack, run.tokens).items()}
    devices = [
        {
            "device": device.name,
            "base": base,
            "gradient_checkpointing": checkpointing,
            "plans": [
                plan._asdict()
                for plan in cost_model.plan_devices(
                    device,
                    fixed_bytes=weights + sum(parameters.trained_bytes().values()),
                    bytes_per_text=run.tokens * activations.per_token(checkpointing=checkpointing),
                    batch_size=run.batch_size,
                    flops=flops["student"] + flops["teacher"] + checkpointing * flops["recomputed"],
                    mfu=run.mfu,
                )
            ],
        }
        for device in cost_model.DEVICES
        for base, weights in parameters.frozen_bytes().items()
        for checkpointing in (False, True)
    ]
    return {
        "parameters": {**parameters._asdict(), "frozen": parameters.frozen, "trained": parameters.trained},
        "frozen_bytes": parameters.frozen_bytes(),
        "trained_bytes": parameters.trained_bytes(),
        "activation_bytes_per_token": {
            **activations._asdict(),
            "all": activations.per_token(checkpointing=False),
            "all_with_checkpointing": activations.per_token(checkpointing=True),
        },
        "texts": texts,
        "tokens_per_text": run.tokens,
        "tokens": {"student": texts * run.tokens, "teacher": texts * run.tokens},
        "flops": flops,
        "mfu": run.mfu,
        "devices": devices,
        "bundle_bytes": bundle,
    }


def table(figures: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = ["parameters (millions)"]
    lines += [f"  {name:<26}{count / 1e6:>10,.1f}" for name, count in figures["parameters"].items()]
    for title in ("frozen_bytes", "trained_bytes", "bundle_bytes"):
        lines.append(f"{title.replace('_', ' ')} (MB)")
        lines += [f"  {name:<26}{size / 1e6:>10,.1f}" for name, size in figures[title].items()]
    lines.append("activations (bytes per token; formulas: mtllm_edge_train/recipes/estimate.py)")
    lines += [f"  {name:<26}{size:>10,}" for name, size in figures["activation_bytes_per_token"].items()]
    lines.append(f"general adaptation, {figures['texts']:,} texts, each of {figures['tokens_per_text']} tokens")
    lines += [f"  {name + ' tokens':<26}{count / 1e6:>10,.1f} M" for name, count in figures["tokens"].items()]
    lines += [f"  {name + ' FLOPs':<26}{count:>10.2e}" for name, count in figures["flops"].items()]
    lines.append(f"GPUs: texts at a time on each x accumulation, hours at {figures['mfu']:.0%} of the peak")
    for row in figures["devices"]:
        cells = [f"{p['gpus']}: {p['texts']}x{p['accumulation']}, {p['hours']:.0f} h" for p in row["plans"]]
        how = f"{row['device']}, {row['base']}{', checkpointing' * row['gradient_checkpointing']}"
        lines.append(f"  {how:<38}" + ("  ".join(f"{cell:<18}" for cell in cells).rstrip() or "does not fit"))
    return "\n".join(lines)


def _count(work: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
