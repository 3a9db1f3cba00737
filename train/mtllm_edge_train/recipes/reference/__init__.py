"""Ingredients of the reference model: its encoder from packages on PyPI, its vocabulary, its English text."""
