"""A bundle behind HTTP: `mtllm-edge serve`. Nothing here is imported by the rest of the runtime."""
