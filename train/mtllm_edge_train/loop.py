"""The optimisation loop that all stages share: schedule, progress, logs, and resuming from the last save."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from mtllm_edge.bundle import refuse_existing, write_bundle
from mtllm_edge.errors import EngineError, ModelError, UsageError
from mtllm_edge_train.config import TENSORS_NAME

STATE_NAME = "training.json"
LOG_NAME = "log.jsonl"


@dataclass(frozen=True)
class LoopSettings:
    """How a stage is optimised: AdamW, linear warm-up, then linear decay to zero."""

    batch_size: int
    learning_rate: float
    warmup: float = 0.01
    """Fraction of the steps."""
    max_grad_norm: float = 1.0
    save_every: int = 200
    """Steps between saves that a later run can resume from."""
    log_every: int = 20
    seed: int = 0
    device: str = "cpu"
    dtype: str = "bfloat16"
    """Type of the matrix products: ``bfloat16`` (autocast) or ``float32``."""
    gradient_checkpointing: bool = False
    """Compute the LLM's activations twice instead of keeping them: for large LLMs on one GPU."""

    def factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate at one of the steps."""
        warmup = max(1, math.ceil(self.warmup * steps))
        return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Type in which frozen weights are kept: the one that the products are computed in."""
        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    def autocast(self) -> Any:
        """Context in which forward passes run."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)


class TrainingState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`training.json`: where a run stands."""

    stage: str
    fingerprint: str
    """Digest of settings and data; another one cannot be resumed."""
    step: int
    finished: bool


def fingerprint(*parts: object) -> str:
    """Digest of everything that a run depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def start_or_resume(folder: Path, stage: str, key: str, *, force: bool) -> TrainingState | None:
    """Decide what an existing output folder means.

    Returns:
        The state to resume from, or None to start anew.

    Raises:
        UsageError: The folder holds a finished run, other settings, or something else.
    """
    if force or not (folder.exists() or folder.is_symlink()):
        refuse_existing(folder, force=force, marker=STATE_NAME)
        _check_parent(folder)
        return None
    try:
        state = msgspec.json.decode((folder / STATE_NAME).read_bytes(), type=TrainingState)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} exists and is no unfinished run; choose another folder or pass --force") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / STATE_NAME}: {error}; pass --force to start anew") from None
    if state.finished:
        raise UsageError(f"{folder} holds a finished run; choose another folder or pass --force")
    if (state.stage, state.fingerprint) != (stage, key):
        raise UsageError(
            f"{folder} holds a run of {state.stage!r} with other settings or data; "
            "repeat those to resume it, choose another folder, or pass --force"
        )
    return state


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    path = folder / STATE_NAME
    return path.is_file() and msgspec.json.decode(path.read_bytes(), type=TrainingState).finished


def _check_parent(folder: Path) -> None:
    """Find out before the training, not at its first save."""
    interrupted = [*folder.parent.glob(f".{glob.escape(folder.name)}.*.old")]
    if interrupted and not folder.exists():
        raise UsageError(
            f"{interrupted[0]} is the last save of a run that was stopped while it saved; "
            f"rename it to {folder} to go on, or remove it"
        )
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write to {parent}; choose another folder")


def optimise(
    parameter_groups: Sequence[dict[str, Any]],
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    *,
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

    Args:
        parameter_groups: For AdamW; a group may bring its own ``lr``.
        loss: Step -> loss and figures to log beside it.
        stage: Name of the stage.
        key: `fingerprint` of the run.
        folder: The checkpoint; replaced whole at every save, so the last good one survives a crash.
        steps: How many.
        settings: See `LoopSettings`.
        state: What `start_or_resume` returned; the caller has loaded the weights.
        save_weights: Writes the checkpoint's weights into a folder.
        log: Takes one line of text.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups, lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True
    )
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    history: list[dict[str, float]] = []
    first = 0
    if state is not None:
        first = state.step
        history = _restore(folder, optimizer)
        log(f"{stage}: resuming at step {first} of {steps}")
    else:
        torch.manual_seed(settings.seed)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    recent: list[dict[str, float]] = []
    started, done_before = time.monotonic(), first
    for step in (bar := tqdm(range(first, steps), initial=first, total=steps, desc=stage, mininterval=1)):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * settings.factor(step, steps)
        value, figures = loss(step)
        if not torch.isfinite(value):
            raise ModelError(f"{stage}: the loss is {value.item()} at step {step}; lower the learning rate")
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append({"loss": value.item(), **figures})
        if (step + 1) % settings.log_every == 0 or step + 1 == steps:
            means = {name: float(np.mean([entry[name] for entry in recent])) for name in recent[0]}
            seconds = (time.monotonic() - started) / (step + 1 - done_before)
            history.append({"step": step + 1, **means, "seconds_per_step": round(seconds, 4)})
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()})
            recent.clear()
        if (step + 1) % settings.save_every == 0 or step + 1 == steps:
            finished = step + 1 == steps
            new_state = TrainingState(stage=stage, fingerprint=key, step=step + 1, finished=finished)
            _save(folder, save_weights, new_state, None if finished else optimizer, history)
    log(f"{stage}: {steps} steps done, saved to {folder}; {json.dumps(history[-1])}")


def _save(
    folder: Path,
    save_weights: Callable[[Path], None],
    state: TrainingState,
    optimizer: torch.optim.Optimizer | None,
    history: list[dict[str, float]],
) -> None:
    try:
        with write_bundle(folder, force=True, marker=STATE_NAME) as scratch:
            save_weights(scratch)
            if optimizer is not None:
                save_file(_optimizer_tensors(optimizer), scratch / TENSORS_NAME)
            (scratch / LOG_NAME).write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")
            (scratch / STATE_NAME).write_bytes(msgspec.json.encode(state) + b"\n")
    except (OSError, SafetensorError) as error:  # the latter is safetensors' word for a full disk, too
        raise EngineError(
            f"{folder} could not be saved ({error}); an earlier save is as it was: make room and repeat the command"
        ) from None


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda_rng.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
    return tensors


def _restore(folder: Path, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    try:
        tensors = load_file(folder / TENSORS_NAME)
    except (FileNotFoundError, SafetensorError) as error:
        raise ModelError(f"{folder / TENSORS_NAME}: {error}; pass --force to start anew") from None
    torch.set_rng_state(tensors.pop("rng"))
    on_cuda = [tensors.pop(name) for name in sorted(tensors) if name.startswith("cuda_rng.")]
    if on_cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(on_cuda)
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, field = name.split(".")
        entries.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    lines = (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def settings_dict(settings: LoopSettings) -> dict[str, Any]:
    """The settings that decide a run's result: not how often it is saved and logged, nor what it keeps in memory."""
    neutral = ("save_every", "log_every", "gradient_checkpointing")
    return {name: value for name, value in asdict(settings).items() if name not in neutral}
