"""Exceptions of mtllm-edge, one class per decision of the caller.

The tree of classes::

    MtllmError
    ├── UsageError        wrong call: change the arguments
    ├── DataError         wrong text or file of texts: change the input
    │   └── NoRowsError   file without texts: leave it out
    ├── ModelError        wrong bundle or checkpoint: get, export or train another one
    └── EngineError       failure of an engine or the machine: see `mtllm-edge doctor`

Every message is one line: what is wrong, where, and what to do.
"""


class MtllmError(Exception):
    """Base class of all errors of this project; the command line prints them as one line."""

    exit_code = 1
    """Exit code of the command line."""


class UsageError(MtllmError):
    """A wrong call: an unknown task, a missing file, an existing output, a missing extra."""

    exit_code = 2


class DataError(MtllmError):
    """A text, or a file of texts, cannot be used."""


class NoRowsError(DataError):
    """A file contains no texts."""


class ModelError(MtllmError):
    """A bundle or a checkpoint is incomplete, damaged, or of a version that this release cannot read."""


class EngineError(MtllmError):
    """A native engine (llama.cpp, CTranslate2, ONNX Runtime) cannot load a model or compute."""
