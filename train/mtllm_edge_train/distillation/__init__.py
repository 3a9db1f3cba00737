"""Self-distillation: teacher, student, losses, cached embeddings."""
