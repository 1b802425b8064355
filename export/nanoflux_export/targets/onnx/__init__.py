"""ONNX: convert, compress, run and lint folders of `.onnx` models that share one weight file."""
