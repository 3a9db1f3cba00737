"""Support for applications frozen by PyInstaller or a similar tool.

A frozen application has no Python that could run this package's child processes. Its own program is started instead,
with an argument that `freeze_support` handles. Call it before anything else::

    from mtllm_edge.frozen import freeze_support

    if __name__ == "__main__":
        freeze_support()
        main()
"""

from __future__ import annotations

import sys

from mtllm_edge.backends.probing import child_process


def freeze_support() -> None:
    """Run a child process of this package and exit, if the program was started as one.

    Does nothing in a program that is not frozen. A frozen application without this call works too, but more slowly:
    the LLM runs with llama.cpp's plain kernels, since faster ones cannot be tried in a child process.
    """
    if not child_process.is_frozen():
        return
    child_process.register_frozen_application()
    if sys.argv[1:2] == [child_process.FROZEN_ARGUMENT]:
        _run(sys.argv[2], sys.argv[3:])
        sys.exit(0)


def _run(module: str, arguments: list[str]) -> None:
    """Run a module by its name; freezing tools find the modules by these imports."""
    from mtllm_edge.backends.probing import gpu_child, llama_cpp_child, llm_backend_child
    from mtllm_edge.diagnostics import deep_verify

    mains = {child.__name__: child.main for child in (gpu_child, llama_cpp_child, llm_backend_child, deep_verify)}
    mains[module](arguments)
