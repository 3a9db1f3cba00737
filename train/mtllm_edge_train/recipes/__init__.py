"""Recipes of published models: settings, and the calls of this package that they go into."""
