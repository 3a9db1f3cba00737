"""Training: the torch definition of the stack, its checkpoints, and the stages of self-distillation."""
