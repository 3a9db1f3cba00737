"""`mtllm-edge train` as a module, for `accelerate launch -m mtllm_edge_train adapt ...`."""

import sys

from mtllm_edge.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
