"""Everything that mtllm-edge raises on purpose.

One class per decision that the caller makes::

    MtllmError
    ├── UsageError        the call is wrong: change the arguments
    ├── DataError         a text or a file of texts is wrong: change the input
    │   └── NoRowsError   a file holds no text at all: leave it out
    ├── ModelError        a bundle or checkpoint is wrong: get, export or train another one
    └── EngineError       an engine or the machine refused: see `mtllm-edge doctor`

Every message is one line that says what is wrong, where, and what to do.
"""


class MtllmError(Exception):
    """Base of all errors of this project; the command line prints it as one line."""

    exit_code = 1
    """What the command line ends with."""


class UsageError(MtllmError):
    """The call itself is wrong: an unknown task, a missing file, an existing output, a missing extra."""

    exit_code = 2


class DataError(MtllmError):
    """A text, or a file of texts, cannot be used."""


class NoRowsError(DataError):
    """A file holds no text at all."""


class ModelError(MtllmError):
    """A bundle or a checkpoint is incomplete, damaged, or of a version that this release cannot read."""


class EngineError(MtllmError):
    """A native engine (llama.cpp, CTranslate2) refused to load or to compute."""
