"""Native engines for encoder and LLM, and what is safe on this machine."""
