"""Texts to token ids: special tokens, batches, windows."""
