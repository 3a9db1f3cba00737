"""The systems that a benchmark compares."""
