"""Load and run a bundle in a child process, which a native library may end.

The child, ``python -m mtllm_edge.diagnostics.deep_verify BUNDLE``, prints a JSON object as its last line.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import msgspec
import numpy as np

from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.child_process import ChildStartError, Failure, run_child
from mtllm_edge.bundle.manifest import LlmSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import EngineError, MtllmError
from mtllm_edge.extras import missing_modules

SECONDS = 600.0
"""Time limit of the child: enough for a large bundle on a slow disk, and the first probe of the engine."""
_TEXTS = ("The rocket reached orbit.", "Die Rakete erreichte die Umlaufbahn.", "1 " * 12)


class RunResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Output of the child."""

    texts: int = 0
    seconds: float = 0.0
    """From opening the bundle to the last probability."""
    error: str | None = None
    """Message of an error of this project."""


def run_in_child(path: Path) -> RunResult:
    """Load and run a bundle in a child process.

    Raises:
        EngineError: The bundle cannot be run, or the child crashed or did not end in time.
    """
    if not child_process.is_available():
        raise EngineError(f"{path} cannot be run: {child_process.UNAVAILABLE}")
    command = child_process.command("mtllm_edge.diagnostics.deep_verify", str(path.resolve()))
    try:
        result = run_child(command, RunResult, SECONDS)
    except ChildStartError as error:
        raise EngineError(f"{path} cannot be run: {error}") from None
    if isinstance(result, Failure):
        raise EngineError(f"{path}: running it in a child process {result.reason}; see `mtllm-edge doctor`")
    if result.error is not None:
        raise EngineError(f"running it in a child process failed: {result.error}")
    return result


def run(path: Path) -> RunResult:
    """Load a bundle, embed a few texts with every backend of its LLM, and apply all heads to them."""
    start = time.perf_counter()
    bundle = Bundle.open(path)
    for llm in bundle.manifest.llms:
        if llm is bundle.manifest.llm or not missing_modules("onnxruntime"):
            _run_backend(bundle, llm)
    return RunResult(texts=len(_TEXTS), seconds=time.perf_counter() - start)


def _run_backend(bundle: Bundle, llm: LlmSpec) -> None:
    from mtllm_edge.embedder import Embedder
    from mtllm_edge.tasks.head import Head

    language = bundle.manifest.languages[0] if bundle.manifest.encoder.needs_language else None
    with Embedder.load(bundle, llm_backend=llm.backend) as embedder:
        encoded = embedder.encode(_TEXTS, language=language)
        base_NE = embedder.pool(encoded)
        for name, task in bundle.manifest.tasks.items():
            if task.adapter is not None and llm.backend != "gguf":
                continue  # other backends have no adapters
            pooled_NE = base_NE if task.adapter is None else embedder.pool(encoded, task=name)
            if not np.isfinite(Head.load(bundle.path, task).probabilities(pooled_NE)).all():
                raise EngineError(
                    f"{bundle.path}: the probabilities of task {name!r} are not finite; train or export it again"
                )


def main(arguments: list[str]) -> None:
    """Run a bundle and print the result; `arguments` has its path."""
    child_process.disable_core_dumps()
    warnings.simplefilter("ignore")
    try:
        result = run(Path(arguments[0]))
    except MtllmError as error:
        result = RunResult(error=str(error))
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
