"""Training: losses, the loop, the tiny family."""
