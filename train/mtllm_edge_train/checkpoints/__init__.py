"""Checkpoints and LLM weights on disk, read without torch."""
