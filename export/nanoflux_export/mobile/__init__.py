"""Whole networks in mobile form: BC1S layout, static shapes, rank at most 4."""
