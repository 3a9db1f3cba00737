"""Translation encoders: token ids in, hidden states out."""
