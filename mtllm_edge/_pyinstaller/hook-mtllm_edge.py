"""Hook of the runtime: its version, and the modules of its child processes."""

from PyInstaller.utils.hooks import copy_metadata

try:
    datas = copy_metadata("mtllm-edge")
except Exception:  # a source tree that is not installed has no metadata, so the version is unknown
    datas = []
hiddenimports = ["mtllm_edge.frozen"]
# For fitting, exporting and training, which a program that labels texts does not do.
excludedimports = ["sklearn", "mtllm_edge_export", "mtllm_edge_train", "mtllm_edge_bench"]
