"""Core ML: convert, compress, execute and lint `.mlpackage` files, without a Mac."""
