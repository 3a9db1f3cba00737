"""Checkpoints on disk, read without torch."""
