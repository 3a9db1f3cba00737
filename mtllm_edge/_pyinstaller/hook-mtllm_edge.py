"""The runtime's version, and the probe that its child process runs."""

from PyInstaller.utils.hooks import copy_metadata

try:
    datas = copy_metadata("mtllm-edge")
except Exception:  # a source tree that is not installed has no metadata, and its version is unknown in the program, too
    datas = []
hiddenimports = ["mtllm_edge.frozen"]
# Heads are fitted and bundles exported by people with a checkout, not by a program that labels texts.
excludedimports = ["sklearn", "mtllm_edge_export", "mtllm_edge_train", "mtllm_edge_bench"]
