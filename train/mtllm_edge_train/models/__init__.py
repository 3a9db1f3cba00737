"""The stack as torch modules, and the loading of pretrained encoders and LLMs."""
