"""Run bundles for `tests.tools.fuzz.run`: read folders from stdin, and print an outcome for each.

An outcome is ``ran``, ``refused`` and the reason, or ``error`` and an exception that is not the project's own; none if
the process dies.
"""

from __future__ import annotations

import os
import resource
import sys
import warnings

from mtllm_edge import Classifier
from mtllm_edge.backends import loading
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.errors import MtllmError

TEXTS = ["the team is good", "a", "das Hotel ist schlecht " * 8]
_MEMORY = 12 * 2**30


def main() -> None:
    """Run bundles until the input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    warnings.simplefilter("ignore")
    settings = EngineSettings(sys.argv[1] == "1", sys.argv[2] == "1", note="found by the parent")
    loading.engine_settings = lambda *_: settings  # type: ignore[attr-defined]  # no child process for every mutant
    outcomes = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # engines print to stdout
    for line in sys.stdin:
        outcomes.write(_run(line.rstrip("\n")) + "\n")
        outcomes.flush()


def _run(folder: str) -> str:
    try:
        with Classifier.load(folder, task="topic", threads=1) as classifier:
            classifier.classify(TEXTS)
    except MtllmError as error:
        return f"refused {error}"
    except BaseException as error:
        return f"error {type(error).__name__} {' '.join(str(error).split())}"
    return "ran"


if __name__ == "__main__":
    main()
