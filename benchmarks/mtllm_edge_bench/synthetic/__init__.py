"""Random models with the shapes of real ones."""
