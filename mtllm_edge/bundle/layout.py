"""File names inside a bundle."""

from __future__ import annotations

TOKENIZER_NAME = "tokenizer.json"
ENCODER_NAME = "encoder"
"""Folder of an encoder in CTranslate2; `mtllm_edge.bundle.manifest.EncoderSpec.path` knows where either form lies."""
BRIDGE_NAME = "bridge.safetensors"
LLM_NAME = "llm.gguf"
"""Of an LLM in GGUF; `mtllm_edge.bundle.manifest.LlmSpec.file` knows that of either form."""
