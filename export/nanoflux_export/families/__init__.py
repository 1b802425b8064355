"""The graphs each family ships, one module per family, found by its name."""
