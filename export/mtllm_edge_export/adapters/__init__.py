"""LoRA adapters: merged into the LLM, or converted to GGUF."""
