"""Measurement of systems in child processes."""
