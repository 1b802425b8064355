"""Choosing how each layer is stored: what enters it, what small costs, what fits best."""
