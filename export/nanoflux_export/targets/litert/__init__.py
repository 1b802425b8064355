"""LiteRT: convert, compress, run and lint `.tflite` files."""
