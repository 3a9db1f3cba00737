"""Quantization: k-quants with llama.cpp, importance matrices, int8 in ONNX."""
