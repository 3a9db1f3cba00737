"""`python -m mtllm_edge`, the same as the command `mtllm-edge`."""

import sys

from mtllm_edge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
