"""Training on translation pairs, for encoders that English alone does not align."""
