"""Writers of the LLM body: GGUF and ONNX."""
