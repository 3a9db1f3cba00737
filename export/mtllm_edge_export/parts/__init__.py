"""Bundles split from, and joined with, weights that are distributed elsewhere."""
