"""Exporters: a trained checkpoint becomes an edge bundle."""
