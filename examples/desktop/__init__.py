"""A desktop application around mtllm-edge: `python -m examples.desktop`, from the checkout's root."""
