"""For applications that are frozen into a program of their own, by PyInstaller or another tool.

They have no Python that could run this package's child processes, so the application's own program is started for
them, with an argument that it would not understand by itself: its first act must be `freeze_support`::

    from mtllm_edge.frozen import freeze_support

    if __name__ == "__main__":
        freeze_support()
        main()
"""

from __future__ import annotations

import sys

from mtllm_edge.backends.probing import child_process


def freeze_support() -> None:
    """Run as the child process that this package has started, and end with it; else only take note of the call.

    Does nothing in a program that is not frozen. A frozen one that never calls this works, too, but more slowly: what
    is fast and safe cannot be tried in a child there, so the LLM runs with llama.cpp's plain kernels.
    """
    if not child_process.is_frozen():
        return
    child_process.register_frozen_application()
    if sys.argv[1:2] == [child_process.FROZEN_ARGUMENT]:
        _run(sys.argv[2], sys.argv[3:])
        sys.exit(0)


def _run(module: str, arguments: list[str]) -> None:
    """Run one of the modules that are made to be children; a freezing tool finds them by these imports."""
    from mtllm_edge.backends.probing import gpu_child, llama_cpp_child, llm_backend_child
    from mtllm_edge.diagnostics import deep_verify

    mains = {known.__name__: known.main for known in (gpu_child, llama_cpp_child, llm_backend_child, deep_verify)}
    mains[module](arguments)
