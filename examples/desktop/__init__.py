"""Desktop application; run `python -m examples.desktop` from the root of the repository."""
