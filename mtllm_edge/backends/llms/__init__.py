"""LLM bodies: input embeddings in, pooled vectors out."""
