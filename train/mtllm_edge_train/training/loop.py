"""The training loop of all stages: optimizer, log, saves and resuming."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from mtllm_edge.errors import EngineError, ModelError, UsageError
from mtllm_edge.files.atomic import atomic_folder
from mtllm_edge_train.checkpoints.config import TENSORS_NAME
from mtllm_edge_train.training.curves import draw_curves
from mtllm_edge_train.training.distributed import ProcessGroup, join_process_group
from mtllm_edge_train.training.gradient_accumulation import backward, mean_metrics, micro_batches
from mtllm_edge_train.training.run_state import STATE_NAME, TrainingState, fingerprint, start_or_resume
from mtllm_edge_train.training.stage import Stage, TrainingPlan

LOG_NAME = "log.jsonl"
CURVE_NAME = "curve.png"


def run_stage(stage: Stage, folder: Path, *, force: bool = False, log: Callable[[str], None] = print) -> None:
    """Run a training stage to its end and save its checkpoint.

    Under `accelerate launch` every process calls this alike and reads its shard of each batch; the first one saves.
    The random numbers of a step depend on seed, step and process only, so a resumed run gives the same result.

    Args:
        stage: The stage with its options.
        folder: The checkpoint. An unfinished run of the same options is resumed. Each save replaces the whole folder,
            so the last save survives a crash.
        force: Replace an existing checkpoint.
        log: Takes one line of text.

    Raises:
        UsageError: An option is invalid, the folder is not usable, or a batch cannot be divided among the processes.
        ModelError: A model or the last save is damaged, or the loss is not finite.
        DataError: The training data is invalid.
        EngineError: Saving failed.
    """
    settings = stage.settings
    group = join_process_group(torch.device(settings.device).type)
    if group.size * settings.accumulate > 1 and not stage.divisible:
        raise UsageError(f"{stage.kind} reads a step's batch whole; run it in one process and without accumulation")
    torch.manual_seed(settings.seed)
    data = stage.check()
    key = fingerprint(stage.config, settings.fingerprint_fields(), *data)
    state = start_or_resume(folder, stage.kind, key, force=force)
    plan = stage.build(None if state is None else folder, log)
    optimizer = torch.optim.AdamW(
        plan.parameter_groups, lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True
    )
    for options in optimizer.param_groups:
        options["peak"] = options["lr"]
    history: list[dict[str, float]] = []
    if state is None:
        state = TrainingState(stage=stage.kind, fingerprint=key, step=0, finished=False)
    else:
        history = _restore(folder, optimizer)
        if group.rank == 0:
            log(f"{stage.kind}: resuming at step {state.step} of {plan.steps}")
    if group.sum_metrics({"step": state.step}) != {"step": state.step * group.size}:
        raise UsageError(f"the processes do not see the same {folder}; use a folder that all of them can read")
    group.broadcast_parameters(_parameters(optimizer))
    _optimize(stage, plan, optimizer, group, folder, state, history)
    if group.rank == 0:
        log(f"{stage.kind}: {plan.steps} steps done, saved to {folder}; {json.dumps(history[-1])}")


def _optimize(
    stage: Stage,
    plan: TrainingPlan,
    optimizer: torch.optim.Optimizer,
    group: ProcessGroup,
    folder: Path,
    state: TrainingState,
    history: list[dict[str, float]],
) -> None:
    """Run the remaining steps; extend the history and save at the intervals of the settings."""
    settings, first = stage.settings, state.step
    recent: list[dict[str, float]] = []
    started = time.monotonic()
    steps = range(first, plan.steps)
    bar = tqdm(steps, stage.kind, plan.steps, initial=first, mininterval=1, disable=group.rank != 0)
    for step in bar:
        recent.append(_step(stage, plan, optimizer, group, step))
        done, finished = step + 1, step + 1 == plan.steps
        saving = finished or done % settings.save_every == 0
        if saving or done % settings.log_every == 0:  # metrics that are not logged before a save are lost on resuming
            means = mean_metrics(recent)
            rate = settings.learning_rate * settings.learning_rate_factor(step, plan.steps)
            seconds = round((time.monotonic() - started) / (done - first), 4)
            history.append({"step": done, **means, "learning_rate": rate, "seconds_per_step": seconds})
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()})
            recent.clear()
        if saving:
            if group.rank == 0:
                _save(folder, stage, msgspec.structs.replace(state, step=done, finished=finished), optimizer, history)
            group.barrier()


def _step(
    stage: Stage, plan: TrainingPlan, optimizer: torch.optim.Optimizer, group: ProcessGroup, step: int
) -> dict[str, float]:
    """Run one step of the optimizer; return loss and metrics of the batch."""
    settings = stage.settings
    for options in optimizer.param_groups:
        options["lr"] = options["peak"] * settings.learning_rate_factor(step, plan.steps)
    torch.manual_seed(int(np.random.SeedSequence((settings.seed, step, group.rank)).generate_state(1)[0]))
    parts = micro_batches(plan.batches[step], settings.accumulate, group, stage.loss_terms)
    metrics = group.sum_metrics(backward(stage.loss, parts))
    if not math.isfinite(metrics["loss"]):
        raise ModelError(f"{stage.kind}: the loss is {metrics['loss']} at step {step}; lower the learning rate")
    parameters = _parameters(optimizer)
    group.sum_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return metrics


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for options in optimizer.param_groups for parameter in options["params"]]


def _save(
    folder: Path,
    stage: Stage,
    state: TrainingState,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:
    try:
        with atomic_folder(folder, force=True, marker=STATE_NAME) as scratch:
            stage.save(scratch)
            if not state.finished:
                save_file(_optimizer_tensors(optimizer), scratch / TENSORS_NAME)
            (scratch / LOG_NAME).write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")
            draw_curves(history, scratch / CURVE_NAME, title=f"{folder.name}: {state.stage}")
            (scratch / STATE_NAME).write_bytes(msgspec.json.encode(state) + b"\n")
    except (OSError, SafetensorError) as error:  # safetensors raises its own error for a full disk
        raise EngineError(
            f"{folder} could not be saved ({error}); the previous save is unchanged: make room and repeat the command"
        ) from None


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def _restore(folder: Path, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Load the optimizer's state of the last save; return its log."""
    try:
        tensors = load_file(folder / TENSORS_NAME)
    except (FileNotFoundError, SafetensorError) as error:
        raise ModelError(f"{folder / TENSORS_NAME}: {error}; pass --force to start again") from None
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, field = name.partition(".")
        entries.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return [json.loads(line) for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]
