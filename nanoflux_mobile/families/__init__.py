"""One module per family of checkpoints, found by its name."""
