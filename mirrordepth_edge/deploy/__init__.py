"""From checkpoint to ONNX to engine, each step measured against the one before."""
