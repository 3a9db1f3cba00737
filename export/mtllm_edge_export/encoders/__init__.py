"""Writers of the encoder: CTranslate2 and ONNX."""
