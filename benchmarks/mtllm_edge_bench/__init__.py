"""`mtllm-edge bench`: what an MT-LLM costs beside translate-test, its own engines and PyTorch, on the same texts."""
