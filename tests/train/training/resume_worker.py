"""One of several processes: `mtllm-edge train` with the arguments, stopped after its first save and then repeated."""

from __future__ import annotations

import runpy
import sys
from unittest import mock

from mtllm_edge.cli.main import main
from mtllm_edge_train.training.distributed import ProcessGroup


def _stop(self: ProcessGroup) -> None:
    _barrier(self)
    raise KeyboardInterrupt


_barrier = ProcessGroup.barrier

if __name__ == "__main__":
    with mock.patch.object(ProcessGroup, "barrier", _stop):
        if main(["train", *sys.argv[1:]]) != 130:
            sys.exit("the first run was not stopped")
    runpy.run_module("mtllm_edge_train", run_name="__main__", alter_sys=True)
