"""`mtllm-edge verify --deep`: a bundle loaded and run in a child process, which may die of it.

Run as ``python -m mtllm_edge.diagnostics.deep_verify BUNDLE``, the child prints one JSON object in its last line, or
nothing if a native
library ended it.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from pathlib import Path

import msgspec
import numpy as np

from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.child_process import PYTHON_EXIT_CODES, UNAVAILABLE, exit_reason
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import EngineError, MtllmError
from mtllm_edge.extras import missing_modules

SECONDS = 600.0
"""Longest time for the child: a large bundle on a slow disk, and the first probe of the engine, fit."""
_TEXTS = ("The rocket reached orbit.", "Die Rakete erreichte die Umlaufbahn.", "1 " * 12)


class RunResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child reports."""

    texts: int = 0
    seconds: float = 0.0
    """From opening the bundle to the last probability."""
    error: str | None = None
    """The project's own refusal."""


def run_in_child(path: Path) -> RunResult:
    """Load and run a bundle in a child process.

    Raises:
        EngineError: It was refused, or the child died or gave no answer; the message says which.
    """
    if not child_process.is_available():
        raise EngineError(f"{path} cannot be tried: {UNAVAILABLE}")
    try:
        child = child_process.run(
            child_process.command("mtllm_edge.diagnostics.deep_verify", str(path.resolve())), SECONDS
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"{path}: the child process that ran it gave no answer in {SECONDS:g} s") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be tried: no child process could be started ({error.strerror})") from None
    lines = child.stdout.decode(errors="replace").splitlines()
    if child.returncode in PYTHON_EXIT_CODES:
        last = " ".join(child.stderr.decode(errors="replace").strip().splitlines()[-1:])
        raise EngineError(f"{path}: the child process that ran it failed ({last})")
    if child.returncode != 0 or not lines:
        reason = exit_reason(child.returncode)
        raise EngineError(f"{path}: the child process that ran it died ({reason}); see `mtllm-edge doctor`")
    result = msgspec.json.decode(lines[-1], type=RunResult)
    if result.error is not None:
        raise EngineError(f"a child process refused it: {result.error}")
    return result


def run(path: Path) -> RunResult:
    """Load a bundle, embed a few texts in every form of its LLM, and apply every head to them."""
    began = time.perf_counter()
    bundle = Bundle.open(path)
    for llm in bundle.manifest.llms:
        if llm is bundle.manifest.llm or not missing_modules("onnxruntime"):
            _run_form(bundle, llm)
    return RunResult(texts=len(_TEXTS), seconds=time.perf_counter() - began)


def _run_form(bundle: Bundle, llm: LlmSpec) -> None:
    from mtllm_edge.embedder import Embedder
    from mtllm_edge.tasks.head import Head

    language = bundle.manifest.languages[0] if bundle.manifest.encoder.needs_language else None
    with Embedder.load(bundle, llm_backend=llm.backend) as embedder:
        encoded = embedder.encode(_TEXTS, language=language)
        bare_NE = embedder.pool(encoded)
        for name, task in bundle.manifest.tasks.items():
            if task.adapter is not None and llm.backend != "gguf":
                continue  # no other form wears adapters
            pooled_NE = bare_NE if task.adapter is None else embedder.pool(encoded, task=name)
            if not np.isfinite(Head.load(bundle.path, task).probabilities(pooled_NE)).all():
                raise EngineError(
                    f"{bundle.path}: a head gave probabilities that are not finite; train or export it again"
                )


def main(arguments: list[str]) -> None:
    """Run the trial of the one bundle that is named, and print its result."""
    child_process.disable_core_dumps()
    warnings.simplefilter("ignore")
    try:
        result = run(Path(arguments[0]))
    except MtllmError as error:
        result = RunResult(error=str(error))
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
