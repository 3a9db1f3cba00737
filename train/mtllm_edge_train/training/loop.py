"""The optimisation loop that all stages share: schedule, progress, logs, and resuming from the last save."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from mtllm_edge_train.training.distributed import join
from mtllm_edge_train.training.gradient_accumulation import Batches, backward, divided, means_of
from mtllm_edge_train.training.run_state import STATE_NAME, TrainingState
from mtllm_edge_train.training.settings import LoopSettings

LOG_NAME = "log.jsonl"
CURVE_NAME = "curve.png"


def optimise(
    parameter_groups: Sequence[dict[str, Any]],
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]],
    *,
    batches: Batches | None = None,
    size: Callable[[Any], int] = len,
    stage: str,
    key: str,
    folder: Path,
    steps: int,
    settings: LoopSettings,
    state: TrainingState | None,
    save_weights: Callable[[Path], None],
    log: Callable[[str], None] = print,
) -> None:
    """Run a stage to its end, saving on the way.

    Under `accelerate launch` every process calls this alike and reads its share of each batch; the first one saves.
    Random numbers of a step depend on seed, step and process, so that a resumed run draws what it would have drawn.

    Args:
        parameter_groups: For AdamW; a group may bring its own ``lr``.
        loss: Items -> their mean loss, and mean figures to log as `means_of` says.
        batches: Where the items come from. None passes the step's number to `loss`; such a step cannot be divided.
        size: Of a part of a batch: how many values `loss` takes the mean of.
        stage: Name of the stage.
        key: `fingerprint` of the run.
        folder: The checkpoint; replaced whole at every save, so the last good one survives a crash.
        steps: How many.
        settings: See `LoopSettings`.
        state: What `start_or_resume` returned; the caller has loaded the weights.
        save_weights: Writes the checkpoint's weights into a folder.
        log: Takes one line of text.

    Raises:
        UsageError: A batch cannot be divided among the processes.
        ModelError: The loss is no number, or the last save is damaged.
        EngineError: It cannot be saved.
    """
    processes = join(torch.device(settings.device).type)
    if batches is None and (processes.size > 1 or settings.accumulate > 1):
        raise UsageError(f"{stage} reads a step's batch whole; run it in one process and without accumulation")
    optimizer = torch.optim.AdamW(
        parameter_groups, lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True
    )
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    history: list[dict[str, float]] = []
    first = 0
    if state is not None:
        first = state.step
        history = _restore(folder, optimizer)
        if processes.rank == 0:
            log(f"{stage}: resuming at step {first} of {steps}")
    if processes.sum_figures({"first": first}) != {"first": first * processes.size}:
        raise UsageError(f"the processes do not see the same {folder}; put it where all of them can read it")
    processes.same_weights(parameters)
    recent: list[dict[str, float]] = []
    started = time.monotonic()
    hidden = processes.rank != 0
    bar = tqdm(range(first, steps), desc=stage, total=steps, initial=first, mininterval=1, disable=hidden)
    for step in bar:
        factor = settings.factor(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        torch.manual_seed(int(np.random.SeedSequence((settings.seed, step, processes.rank)).generate_state(1)[0]))
        parts = [(step, 1.0)] if batches is None else divided(batches[step], settings.accumulate, processes, size)
        recent.append(processes.sum_figures(backward(loss, parts)))
        if not math.isfinite(recent[-1]["loss"]):
            raise ModelError(f"{stage}: the loss is {recent[-1]['loss']} at step {step}; lower the learning rate")
        processes.sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        saving = done % settings.save_every == 0 or done == steps
        if done % settings.log_every == 0 or saving:  # a resumed run knows nothing of steps that were not logged
            means = means_of(recent)
            seconds = (time.monotonic() - started) / (done - first)
            rate = settings.learning_rate * factor
            history.append({"step": done, **means, "learning_rate": rate, "seconds_per_step": round(seconds, 4)})
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()})
            recent.clear()
        if saving:
            if processes.rank == 0:
                new_state = TrainingState(stage=stage, fingerprint=key, step=done, finished=done == steps)
                _save(folder, save_weights, new_state, None if done == steps else optimizer, history)
            processes.wait()
    if processes.rank == 0:
        log(f"{stage}: {steps} steps done, saved to {folder}; {json.dumps(history[-1])}")


def _save(
    folder: Path,
    save_weights: Callable[[Path], None],
    state: TrainingState,
    optimizer: torch.optim.Optimizer | None,
    history: list[dict[str, float]],
) -> None:
    try:
        with atomic_folder(folder, force=True, marker=STATE_NAME) as scratch:
            save_weights(scratch)
            if optimizer is not None:
                save_file(_optimizer_tensors(optimizer), scratch / TENSORS_NAME)
            (scratch / LOG_NAME).write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")
            draw_curves(history, scratch / CURVE_NAME, title=f"{folder.name}: {state.stage}")
            (scratch / STATE_NAME).write_bytes(msgspec.json.encode(state) + b"\n")
    except (OSError, SafetensorError) as error:  # the latter is safetensors' word for a full disk, too
        raise EngineError(
            f"{folder} could not be saved ({error}); an earlier save is as it was: make room and repeat the command"
        ) from None


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
    return tensors


def _restore(folder: Path, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    try:
        tensors = load_file(folder / TENSORS_NAME)
    except (FileNotFoundError, SafetensorError) as error:
        raise ModelError(f"{folder / TENSORS_NAME}: {error}; pass --force to start anew") from None
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, field = name.partition(".")
        if index.isdigit():  # else it is a random state, which earlier saves held
            entries.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    lines = (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
